"""What pruning and distillation keep: a teacher, a quarter of it pruned, distilled, and the same size from scratch.

    python benchmarks/distil.py run build/distil --tasks scan-simple scan-length bytes   # goes on where it stopped
    python benchmarks/distil.py table build/distil                                       # Markdown

Three tasks: SCAN's simple and length splits (from its grammar, samples/scan_rover/scan.py), and a byte-level language
model over the documentation of Debian's perl-modules and the licences of base-files. The student's shape is searched for
under a budget of a quarter of the teacher's parameters. Distilled and from-scratch students see the same batches.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from edge_export.checkpoint import load_model
from edge_export.data import Batches, Pair, Sample, collate, cut, tokenize
from edge_export.distil import DistilLoss, DistilSchedule
from edge_export.evaluate import exact_match
from edge_export.families import nemotron_h
from edge_export.importance import Importance, measure
from edge_export.prune import StudentShape, prune
from edge_export.search import by_zero_shot, candidates, zero_shot_loss
from edge_export.teacher import cache_teacher
from edge_export.torch_model import HybridLM
from edge_export.training import Schedule, Trainer, cross_entropy
from edge_sdk.files import new_file
from edge_sdk.text import TextCodec

ROVER = Path(__file__).resolve().parent.parent / "samples" / "scan_rover"
sys.path.insert(0, str(ROVER))
import scan  # noqa: E402

SHARE = 0.25
"""Of the teacher's parameters."""

CALIBRATION_SAMPLES, CALIBRATION_BATCH = 256, 32
CANDIDATES = 48
TEXT_LENGTH = 256
"""Bytes of a sample of the language model."""

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
    test: Sequence[Sample]
    score: Callable[[HybridLM, Sequence[Sample]], float]
    unit: str
    teacher: Callable[[Path], HybridLM]
    schedule: DistilSchedule
    """Of distillation and of training from scratch alike."""


def scan_task(split: str, steps: int) -> Task:
    """Commands to actions; exact match over all held-out commands."""
    train, test = scan.simple_split() if split == "simple" else scan.length_split()
    codec = TextCodec(ROVER / "teacher")
    samples, held_out = (tokenize([Pair(*pair) for pair in pairs], codec, end=2) for pairs in (train, test))

    def teacher(folder: Path) -> HybridLM:
        if split == "simple":
            return load_model(ROVER / "teacher")
        model = HybridLM(load_model(ROVER / "teacher").config)
        schedule = Schedule(steps=1600, weight_decay=0.1, average_decay=0.99)
        return trained(model, samples, schedule, folder)

    schedule = DistilSchedule(steps=steps, batch_size=64, learning_rate=3e-3, average_decay=0.99, top_k=32)
    return Task(samples, held_out, exact_match, "exact match", teacher, schedule)


def bytes_task() -> Task:
    """The next byte of a text; bits per byte over every tenth text."""
    texts = [list(text.encode()) + [END] for text in read_texts()]
    train = [sample for index, ids in enumerate(texts) if index % 10 for sample in cut(ids, TEXT_LENGTH)]
    test = [sample for ids in texts[::10] for sample in cut(ids, TEXT_LENGTH)]
    print(f"bytes: {sum(map(len, texts)):,} in {len(texts)} texts, {len(train)} and {len(test)} samples")

    def teacher(folder: Path) -> HybridLM:
        schedule = Schedule(steps=1200, batch_size=16, weight_decay=0.1, average_decay=0.99)
        return trained(HybridLM(nemotron_h.parse_config(dict(BYTES_MODEL))), train, schedule, folder)

    schedule = DistilSchedule(steps=500, batch_size=16, learning_rate=3e-3, average_decay=0.98, top_k=32)
    return Task(train, test, bits_per_byte, "bits per byte", teacher, schedule)


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


def grouped(samples: Sequence[Sample]) -> list[Any]:
    """All samples in batches of similar lengths."""
    order = sorted(range(len(samples)), key=lambda index: len(samples[index].ids))
    return [collate(samples, order[start : start + 16]) for start in range(0, len(order), 16)]


TASKS: dict[str, Callable[[], Task]] = {
    "scan-simple": lambda: scan_task("simple", steps=2500),
    "scan-length": lambda: scan_task("length", steps=1600),
    "bytes": bytes_task,
}


def trained(model: HybridLM, samples: Sequence[Sample], schedule: Schedule, folder: Path) -> HybridLM:
    """A model from random weights."""
    model.reset_parameters(schedule.seed)
    batches = Batches(samples, schedule.batch_size, schedule.seed)
    return Trainer(model, batches, schedule, folder, cross_entropy, folder.name).run()


def run(task: Task, folder: Path, seeds: Sequence[int]) -> None:
    """All models of a task; what is in ``scores.json`` is not made again."""
    scores = Scores(folder / "scores.json")
    teacher = task.teacher(folder / "teacher").eval()
    scores.add("teacher", 0, lambda: task.score(teacher, task.test), parameters=teacher.config.parameters())
    answers = cache_teacher(teacher, task.train, folder / "logits", top_k=task.schedule.top_k, temperature=1.0)
    for seed in seeds:
        importance, shape = searched(teacher, task, folder / f"shape-{seed}.json", seed)
        schedule = msgspec.structs.replace(task.schedule, seed=seed)
        pruned = prune(teacher, shape, importance)
        size = pruned.config.parameters()
        scores.add("pruned", seed, lambda: task.score(pruned, task.test), parameters=size)
        scratch = HybridLM(pruned.config)
        loss = DistilLoss(answers, schedule)

        def distilled() -> HybridLM:
            batches = Batches(task.train, schedule.batch_size, seed)
            return Trainer(pruned, batches, schedule, folder / f"distilled-{seed}", loss, "distilled").run()

        scores.add("distilled", seed, lambda: task.score(distilled(), task.test), parameters=size)
        scores.add(
            "scratch",
            seed,
            lambda: task.score(trained(scratch, task.train, schedule, folder / f"scratch-{seed}"), task.test),
            parameters=size,
        )


def searched(teacher: HybridLM, task: Task, path: Path, seed: int) -> tuple[Importance, StudentShape]:
    """The importance on calibration data that the seed chooses, and the best shape of a quarter of the parameters."""
    torch.manual_seed(seed)
    chosen = torch.randperm(len(task.train))[:CALIBRATION_SAMPLES].tolist()
    batches = [
        collate(task.train, chosen[start : start + CALIBRATION_BATCH])
        for start in range(0, len(chosen), CALIBRATION_BATCH)
    ]
    importance = measure(teacher, batches)
    if not path.exists():
        budget = SHARE * teacher.config.parameters()
        found = candidates(
            teacher.config, importance, lambda config: config.parameters(), budget, count=CANDIDATES, seed=seed
        )
        best = by_zero_shot(teacher, importance, found, batches[:4])[0]
        print(f"{path.parent.name}, seed {seed}: {best.config.pattern}, {best.shape}, {best.loss:.3f} nats")
        with new_file(path) as new:
            new.write_bytes(msgspec.json.encode(best.shape))
    return importance, msgspec.json.decode(path.read_bytes(), type=StudentShape)


class Scores:
    """Scores by model and seed, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []

    def add(self, model: str, seed: int, score: Callable[[], float], **facts: object) -> None:
        """Computes and writes a score that is not there."""
        if any((row["model"], row["seed"]) == (model, seed) for row in self.rows):
            return
        self.rows.append({"model": model, "seed": seed, "score": score(), **facts})
        print(self.path.parent.name, self.rows[-1], flush=True)
        with new_file(self.path) as new:
            new.write_text(json.dumps(self.rows, indent=1) + "\n")


def show(folder: Path) -> None:
    """Markdown tables of every task's scores: mean, and the lowest and highest over the seeds."""
    for path in sorted(folder.glob("*/scores.json")):
        rows = json.loads(path.read_text())
        print(f"\n| {path.parent.name} | parameters | mean | lowest to highest | seeds |\n|---|---|---|---|---|")
        for model in dict.fromkeys(row["model"] for row in rows):
            mine = [row for row in rows if row["model"] == model]
            values = [row["score"] for row in mine]
            sizes = "; ".join(sorted({f"{row['parameters']:,}" for row in mine}))
            spread = f"{min(values):.4f} to {max(values):.4f}" if len(values) > 1 else ""
            print(f"| {model} | {sizes} | {statistics.mean(values):.4f} | {spread} | {len(values)} |")


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
