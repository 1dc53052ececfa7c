"""What pruning and distillation keep: a teacher, a quarter of it pruned, distilled, and the same size from scratch.

    python benchmarks/distil.py run build/distil --tasks scan-simple scan-length bytes   # goes on where it stopped
    python benchmarks/distil.py table build/distil                                       # Markdown

Three tasks: SCAN's simple and length splits (from its grammar, samples/scan_rover/scan.py), and a byte-level language
model over the documentation in Debian's perl-modules and the licences in base-files. The student's shape is searched
under a budget of a quarter of the teacher's parameters. Distilled and from-scratch students see the same batches; of
the text they see a small share, as a model distilled in practice sees little of what its teacher has read. On the
length split the distilled student's batches also hold the teacher's answers to prompts outside SCAN's grammar.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from edge_export.budget import Budget
from edge_export.checkpoint import load_model, save_model
from edge_export.data import Batch, Batches, Sample, collate
from edge_export.distil import DistilLoss, DistilSchedule
from edge_export.documents import Pair, cut, read_pairs, tokenize
from edge_export.evaluate import exact_match, greedy_answers
from edge_export.families import nemotron_h
from edge_export.lessons import TokenLessons
from edge_export.search import zero_shot_loss
from edge_export.students import SearchSettings, make_student
from edge_export.teacher import stored_teacher
from edge_export.torch_model import HybridLM
from edge_export.training import Schedule, Trainer, cross_entropy
from edge_sdk.files import new_file
from edge_sdk.text import TextCodec

ROVER = Path(__file__).resolve().parent.parent / "samples" / "scan_rover"
sys.path.insert(0, str(ROVER))
import scan  # noqa: E402

CODEC = TextCodec(ROVER / "teacher")

SHARE = 0.25
"""Of the teacher's parameters."""

CANDIDATES = 48

WIDER_PROMPTS = 96_000
"""Outside SCAN's grammar, for the teacher to answer: five to six for each pair of the length split's training set."""

ANSWER_LENGTH = 60
"""Tokens within which an answer of the teacher has to end; SCAN's longest has 48 actions."""

TEXT_LENGTH = 256
"""Bytes of a sample of the language model."""

STUDENT_TEXTS = 20
"""One in so many of the teacher's texts is for the students."""

TEXT_FOLDERS = (Path("/usr/share/perl"), Path("/usr/share/common-licenses"))
POD = re.compile(r"^=(?:pod|head\d).*?(?=^=cut|\Z)", re.MULTILINE | re.DOTALL)
"""Perl's embedded documentation."""

END = 0
"""Of a text: no text holds the byte."""

BYTES_MODEL = {
    "model_type": "nemotron_h",
    "vocab_size": 256,
    "hidden_size": 128,
    "hybrid_override_pattern": "M-M*-M-",
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "ssm_state_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 512,
    "max_position_embeddings": 1024,
    "eos_token_id": END,
}


@dataclass(frozen=True)
class Task:
    """Data, the teacher and the students' schedule."""

    train: Sequence[Sample]
    """What students, pruned or from scratch, learn from."""
    test: Sequence[Sample]
    score: Callable[[HybridLM, Sequence[Sample]], float]
    unit: str
    teacher: Callable[[Path], HybridLM]
    schedule: DistilSchedule
    """Of distillation, and but for the steps and the rate of training from scratch."""
    scratch_steps: int
    """From scratch: with ``prompts`` fewer, so that both students see as many samples of ``train``."""
    scratch_rate: float = 3e-3
    """Learning rate from scratch, which takes larger steps than one that starts from the teacher's weights."""
    prompts: Sequence[str] = ()
    """Without answers: those of the teacher are learnt in distillation, besides ``train``."""


def scan_task(split: str) -> Task:
    """Commands to actions; exact match over all held-out commands."""
    train, test = scan.simple_split() if split == "simple" else scan.length_split()
    samples, held_out = (tokenize([Pair(*pair) for pair in pairs], CODEC, end=2) for pairs in (train, test))
    schedule = DistilSchedule(
        steps=4000, batch_size=64, learning_rate=1e-3, weight_decay=0.1, average_decay=0.99, top_k=32
    )
    if split == "simple":
        return Task(
            samples, held_out, exact_match, "exact match", lambda _: load_model(ROVER / "teacher"), schedule, 4000
        )

    def teacher(folder: Path) -> HybridLM:
        model = HybridLM(load_model(ROVER / "teacher").config)
        alone = Schedule(steps=1600, weight_decay=0.1, average_decay=0.99)
        return trained(model, samples, alone, folder)

    schedule = msgspec.structs.replace(schedule, steps=10_650, learning_rate=2e-3)
    prompts = wider_prompts(WIDER_PROMPTS)
    return Task(samples, held_out, exact_match, "exact match", teacher, schedule, 1600, prompts=prompts)


def wider_prompts(count: int, seed: int = 0) -> list[str]:
    """Commands outside SCAN's grammar, each once: of two or three parts (:func:`_wider_part`).

    None holds a command of the length split's test, not even as some of its words in a row.
    """
    rng, found = random.Random(seed), dict[str, None]()
    known, held_out = set(scan.commands()), {command for command, _ in scan.length_split()[1]}
    while len(found) < count:
        words = _wider_part(rng)
        for _ in range(rng.choice((1, 1, 2))):
            words += [rng.choice(("and", "after")), *_wider_part(rng)]
        spans = itertools.combinations(range(len(words) + 1), 2)
        if " ".join(words) not in known and not any(" ".join(words[slice(*span)]) in held_out for span in spans):
            found[" ".join(words)] = None
    return list(found)


def _wider_part(rng: random.Random) -> list[str]:
    """One part of a command, long ones more often than short: the side may be left out, and a repeat be repeated."""
    words = [rng.choice((*scan.PRIMITIVES, "turn")), rng.choice(("", *2 * ("opposite",), *3 * ("around",)))]
    words.append(rng.choice(("", *4 * tuple(scan.TURNS))))
    words += [rng.choice(("twice", "thrice")) for _ in range(rng.choice((0, 1, 1, 1, 2, 2)))]
    return [word for word in words if word]


def answered(teacher: HybridLM, prompts: Sequence[str], path: Path) -> list[Sample]:
    """Prompts with what the teacher answers greedily, kept in a file; those whose answers do not end are left out."""
    if not prompts:
        return []
    if not path.exists():
        ids = [CODEC.encode_prompt(prompt) for prompt in prompts]
        rows = greedy_answers(teacher, ids, [ANSWER_LENGTH] * len(ids))
        pairs = [(prompt, CODEC.decode(row)) for prompt, row in zip(prompts, rows) if len(row) < ANSWER_LENGTH]
        with new_file(path) as new:
            scan.write_pairs(new, pairs)
    return tokenize(read_pairs(path), CODEC, end=2)


def bytes_task() -> Task:
    """The next byte of a text; bits per byte over every tenth text."""
    texts = [[*text.encode(), END] for text in read_texts()]
    known = [ids for index, ids in enumerate(texts) if index % 10]
    train, few = samples_of(known), samples_of(known[::STUDENT_TEXTS])
    test = samples_of(texts[::10])
    print(f"bytes: {sum(map(len, texts)):,} in {len(texts)} texts; samples: {len(train)}, {len(few)}, {len(test)}")

    def teacher(folder: Path) -> HybridLM:
        schedule = Schedule(steps=1200, batch_size=16, weight_decay=0.1, average_decay=0.99)
        return trained(HybridLM(nemotron_h.parse_config(dict(BYTES_MODEL))), train, schedule, folder)

    schedule = DistilSchedule(steps=1500, batch_size=16, learning_rate=4e-3, average_decay=0.99, top_k=32)
    return Task(few, test, bits_per_byte, "bits per byte", teacher, schedule, 1500)


def samples_of(texts: Sequence[Sequence[int]]) -> list[Sample]:
    """Pieces of texts; each begins from empty states."""
    return [sample for ids in texts for sample in cut(ids, TEXT_LENGTH)]


def read_texts() -> list[str]:
    """The documentation in Perl's modules and the licences' texts, file by file, by name."""
    texts = []
    for path in sorted(path for folder in TEXT_FOLDERS for path in folder.rglob("*")):
        if path.is_file() and not any(parent.is_symlink() for parent in (path, *path.parents)):
            text = path.read_text(encoding="utf-8", errors="replace")
            if path.suffix in (".pm", ".pod"):
                texts.append("\n".join(POD.findall(text)))
            elif path.parent.name == "common-licenses":
                texts.append(text)
    return [text for text in texts if len(text) > 100]


def bits_per_byte(model: HybridLM, samples: Sequence[Sample]) -> float:
    """Over all samples; their tokens are bytes."""
    return zero_shot_loss(model, grouped(samples)) / math.log(2)


def grouped(samples: Sequence[Sample]) -> list[Batch]:
    """All samples in batches of similar lengths."""
    order = sorted(range(len(samples)), key=lambda index: len(samples[index].ids))
    return [collate(samples, order[start : start + 16]) for start in range(0, len(order), 16)]


TASKS: dict[str, Callable[[], Task]] = {
    "scan-simple": lambda: scan_task("simple"),
    "scan-length": lambda: scan_task("length"),
    "bytes": bytes_task,
}


def trained(model: HybridLM, samples: Sequence[Sample], schedule: Schedule, folder: Path) -> HybridLM:
    """A model from random weights."""
    model.reset_parameters(schedule.seed)
    batches = Batches(samples, schedule.batch_size, schedule.seed)
    return Trainer(model, batches, schedule, folder, cross_entropy, folder.name).run()


def run(task: Task, folder: Path, seeds: Sequence[int]) -> None:
    """All models of a task; what is in ``scores.json`` is not made again."""
    scores = Scores(folder / "scores.json", task)
    checkpoint = folder / "teacher" / "model"
    if not checkpoint.exists():
        save_model(task.teacher(folder / "teacher"), checkpoint)
    teacher = load_model(checkpoint).eval()
    scores.add("teacher", 0, teacher)
    schedule = task.schedule
    lessons = [*task.train, *answered(teacher, task.prompts, folder / "answers.jsonl")]
    answers = stored_teacher(
        checkpoint,
        lessons,
        folder / "logits",
        top_k=schedule.top_k,
        temperature=schedule.temperature,
        device=torch.device("cpu"),
    )
    for seed in seeds:
        schedule = msgspec.structs.replace(schedule, seed=seed)
        pruned = quarter(teacher, task, folder / f"student-{seed}", seed)
        scores.add("pruned", seed, pruned)
        batches, loss = Batches(lessons, schedule.batch_size, seed), DistilLoss(answers, schedule)
        Trainer(pruned, batches, schedule, folder / f"distilled-{seed}", loss, "distilled").run()
        scores.add("distilled", seed, pruned)
        scratch = HybridLM(pruned.config)
        alone = msgspec.structs.replace(schedule, steps=task.scratch_steps, learning_rate=task.scratch_rate)
        trained(scratch, task.train, alone, folder / f"scratch-{seed}")
        scores.add("scratch", seed, scratch)


def quarter(teacher: HybridLM, task: Task, folder: Path, seed: int) -> HybridLM:
    """The best student of a quarter of the parameters, on calibration data that the seed chooses; kept in a folder."""
    if not folder.exists():
        settings = SearchSettings(calibration_samples=256, calibration_batch=32, candidates=CANDIDATES, seed=seed)
        budget = Budget(params=SHARE * teacher.config.parameters())
        student = make_student(teacher, TokenLessons(task.train), budget, settings, folder / "tries")
        print(f"{folder}: {student.found[0].config.pattern}, {student.found[0].shape}", flush=True)
        save_model(student.model, folder)
    return load_model(folder)


class Scores:
    """Scores by model and seed, in a file."""

    def __init__(self, path: Path, task: Task) -> None:
        self.path, self.task = path, task
        self.rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []

    def add(self, name: str, seed: int, model: HybridLM) -> None:
        """Computes and writes a score that is not there."""
        if any((row["model"], row["seed"]) == (name, seed) for row in self.rows):
            return
        score, parameters = self.task.score(model, self.task.test), model.config.parameters()
        self.rows.append({"model": name, "seed": seed, "score": score, "parameters": parameters})
        print(self.path.parent.name, self.rows[-1], flush=True)
        with new_file(self.path) as new:
            new.write_text(json.dumps(self.rows, indent=1) + "\n")


LABELS = {
    "teacher": "teacher",
    "pruned": "pruned",
    "distilled": "pruned and distilled",
    "scratch": "same size from scratch",
}


def table(task: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """A task's scores in Markdown: the mean over the seeds, and the lowest and highest, as docs/benchmarks.md has them.

    The last column is what was to be reached: the share of the teacher's exact match, or of the gap in bits per byte
    between the student from scratch and the teacher, seed by seed.
    """
    exact = task != "bytes"
    headings = ("exact match", "of the teacher's") if exact else ("bits per byte", "of the gap closed")
    lines = [f"| {task} | seeds | parameters | {headings[0]} | {headings[1]} |", "|---|---|---|---|---|"]
    scores = {name: {row["seed"]: row["score"] for row in rows if row["model"] == name} for name in LABELS}
    (best,) = scores["teacher"].values()
    for name, found in scores.items():
        sizes = sorted({row["parameters"] for row in rows if row["model"] == name})
        if exact:
            reached = [score / best for score in found.values() if name in ("distilled", "scratch")]
        else:
            pairs = [(scores["scratch"][seed], found[seed]) for seed in found if seed in scores["scratch"]]
            reached = [(alone - score) / (alone - best) for alone, score in pairs if name == "distilled"]
        count = "" if name == "teacher" else f"{len(found)}"
        score = _spread(list(found.values()), "{:.2%}" if exact else "{:.3f}")
        share = _spread(reached, "{:.1%}")
        lines.append(f"| {LABELS[name]} | {count} | {' to '.join(_ends(sizes, '{:,}'))} | {score} | {share} |")
    return "\n".join(lines)


def _ends(values: Sequence[float], form: str) -> list[str]:
    """The lowest and the highest, once if they read alike."""
    ends = [form.format(end).replace("%", " %") for end in (min(values), max(values))] if values else []
    return list(dict.fromkeys(ends))


def _spread(values: Sequence[float], form: str) -> str:
    """Mean (lowest to highest)."""
    if not values:
        return ""
    mean, ends = form.format(statistics.mean(values)).replace("%", " %"), _ends(values, form)
    return mean if len(ends) == 1 else f"{mean} ({' to '.join(ends)})"


def show(folder: Path) -> None:
    """The tables of all tasks."""
    for path in sorted(folder.glob("*/scores.json")):
        print(f"\n{table(path.parent.name, json.loads(path.read_text()))}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "table"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.action == "table":
        show(options.folder)
        return
    torch.set_num_threads(options.threads)
    for name in options.tasks:
        folder = options.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        run(TASKS[name](), folder, options.seeds)


if __name__ == "__main__":
    main()
