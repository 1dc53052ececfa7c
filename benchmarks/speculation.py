"""Answers with drafted tokens beside plain ones: the demo's model as it answers, larger ones over given texts.

    python benchmarks/speculation.py --scan SCAN_BUNDLE --bundle BUNDLE --bundle ANOTHER

Bundles are exported with ``--speculation``. The demo's model answers SCAN's commands. Other models' weights may be
random, so their answers are given: every logit is computed, and the token that is chosen is the given text's. Times
are the model's then, and how often drafts are right is the text's: records of JSON that are written again with one
field changed, and prose. Each round has other texts, and with --commands other commands: earlier conversations are
looked up too. Without drafts and with each way to draft in turn, decoding only; medians over all rounds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import edge_sdk
from edge_sdk import LanguageModel, Options
from edge_sdk.sampling import Choice, Sampler
from edge_sdk.session import Session
from edge_sdk.speculation import Speculation
from edge_sdk.speculator import Counts
from machine import processor

DOCS = Path(__file__).parents[1] / "docs"
PROSE, PROMPT = "deploy.md", "runtime.md"
PIECE = 1200
"""Characters of prose in a round."""

COMMANDS = (
    "walk around left thrice and jump around right thrice",
    "look around right thrice after run opposite left twice",
    "jump around left twice and look around left thrice",
    "turn left twice and walk around right",
    "run and jump twice",
)


Clock = Callable[[], float]
"""Seconds: what has passed, or what this thread has computed."""


class Given(Sampler):
    """Chooses the tokens of a given text."""

    takes_the_likeliest = False

    def __init__(self, answer: Sequence[int]) -> None:
        super().__init__(Options(), (), 1)
        self._answer = iter(answer)

    def choose(self, logits: np.ndarray, allowed: np.ndarray | None = None) -> Choice:
        """The next of them, whatever the logits (vocab) are."""
        return Choice(next(self._answer))


@dataclass
class Measured:
    """What one way to answer came to; ``seconds`` by round."""

    tokens: int = 0
    seconds: list[float] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)

    def add(self, tokens: int, seconds: float, counts: Counts) -> None:
        """One more answer of this round."""
        self.tokens += tokens
        self.seconds[-1] += seconds
        self.counts.drafted += counts.drafted
        self.counts.accepted += counts.accepted
        self.counts.trials += counts.trials


def replay(
    model: LanguageModel, prompt: Sequence[int], answer: Sequence[int], clock: Clock
) -> tuple[int, float, Counts]:
    """Tokens, seconds after the first one, and drafts of a given answer."""
    with model.session() as session:
        session.append(prompt)
        session.begin_answer()
        sampler = Given(answer)
        _say(session, sampler, len(answer))
        started = clock()
        for left in range(len(answer) - 1, 0, -1):
            _say(session, sampler, left)
        return len(answer) - 1, clock() - started, session.speculation


def _say(session: Session, sampler: Sampler, left: int) -> None:
    choice = session.next_choice(sampler, lambda: False, None, left)
    assert choice is not None
    session.add_answered(choice.token_id, "")


def answer(model: LanguageModel, command: str, clock: Clock) -> tuple[int, float, Counts]:
    """Tokens, seconds after the first one, and drafts of the model's own answer."""
    with model.session() as session:
        stream = session.stream(command, max_new_tokens=64)
        next(stream)
        started = clock()
        tokens = sum(1 for _ in stream)
        return tokens + 1, clock() - started, session.speculation  # and the end token


def commands_of(path: Path | None, count: int, rounds: int) -> list[list[str]]:
    """By round so many prompts of a file of pairs, none of them twice; the same fixed ones where no file is given."""
    if path is None:
        return [list(COMMANDS)] * rounds
    prompts = [json.loads(line)["prompt"] for line in path.read_text(encoding="utf-8").splitlines()]
    step = len(prompts) // (count * rounds)
    if step < 1:
        raise SystemExit(f"{path}: expected at least {count * rounds} prompts, found {len(prompts)}; ask fewer")
    return [prompts[start * step :: step * rounds][:count] for start in range(rounds)]


def same_answers(ways: dict[Speculation, LanguageModel], commands: Sequence[str]) -> int:
    """How many of the commands all ways answer with the same tokens."""
    return sum(
        len({tuple(model.session().generate(command, max_new_tokens=64).token_ids) for model in ways.values()}) == 1
        for command in commands
    )


def texts(number: int) -> Iterator[tuple[str, str, str]]:
    """Names, prompts and answers of a round; no other round has the same ones."""
    rng = np.random.default_rng(number)
    records = [
        {
            "id": f"crate-{index:03}",
            "position_m": [round(float(value), 2) for value in rng.uniform(-5, 5, 3)],
            "mass_kg": round(float(rng.uniform(1, 30)), 1),
            "state": str(rng.choice(["waiting", "moved", "lost"])),
            "fragile": bool(rng.integers(2)),
        }
        for index in range(12)
    ]
    changed = [record | {"state": "delivered"} for record in records]
    yield "JSON, records written again", json.dumps(records), json.dumps(changed)
    new = [record | {"id": f"box-{index * 7 + 11}"} for index, record in enumerate(reversed(records))]
    yield "JSON, records of the same form", json.dumps(records[:2]), json.dumps(new[:-2])
    prose = (DOCS / PROSE).read_text(encoding="utf-8")
    piece = slice(number * PIECE, (number + 1) * PIECE)
    yield "prose", (DOCS / PROMPT).read_text(encoding="utf-8")[:2000], prose[piece]


def tokenizer(vocabulary: int) -> Tokenizer:
    """Of bytes, trained on the other pages of the documentation and a line of JSON."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    pages = [page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("*.md")) if page.name != PROSE]
    made.train_from_iterator([*pages, '{"id": "a", "state": "b", "value": [1.5, -2.25], "is": true}'], trainer)
    return made


def measure(
    ways: dict[Speculation, LanguageModel],
    asked: Sequence[Sequence[str | tuple[list[int], list[int]]]],
    clock: Clock,
) -> dict[Speculation, Measured]:
    """Everything that is asked, by round, each way in turn; the first round only warms up."""
    for number, questions in enumerate(asked):
        if number < 2:
            found: dict[Speculation, Measured] = {way: Measured() for way in ways}
        for measured in found.values():
            measured.seconds.append(0.0)
        for each in questions:
            for way, model in ways.items():
                said = answer(model, each, clock) if isinstance(each, str) else replay(model, *each, clock)
                found[way].add(*said)
    return found


def show(name: str, found: dict[Speculation, Measured]) -> None:
    """Rows of a Markdown table."""
    plain = found["off"]
    for way, each in found.items():
        ratio = median(ours / theirs for ours, theirs in zip(plain.seconds, each.seconds))
        rate = each.tokens / sum(each.seconds)
        counts = each.counts
        drafts = "none | "
        if counts.trials:
            drafts = f"{1 + counts.accepted / counts.trials:.1f} | {counts.accepted / counts.drafted:.0%}"
        print(f"| {name} | {way} | {rate:,.1f} | {drafts} | {ratio:.2f} |", flush=True)


def load(bundle: Path, threads: int) -> dict[Speculation, LanguageModel]:
    """The model in all ways that it can draft."""
    head = edge_sdk.Bundle.open(bundle, verify_hashes=False).manifest.model.mtp is not None
    more: tuple[Speculation, ...] = ("head", "auto") if head else ()
    ways: tuple[Speculation, ...] = ("off", "lookup", *more)
    return {
        way: edge_sdk.load(bundle, device="cpu", threads=threads, speculation=way, prefix_cache_bytes=0) for way in ways
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scan", type=Path, action="append", default=[], help="a bundle of the demo's model")
    parser.add_argument("--bundle", type=Path, action="append", default=[], help="any other")
    parser.add_argument("--commands", type=Path, help="pairs in JSONL whose prompts --scan is asked (default: a few)")
    parser.add_argument("--count", type=int, default=40, help="how many of them (default 40)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=400, help="longest given answer (default 400)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--cpu-time", action="store_true", help="count what one thread computes: others change it little"
    )
    options = parser.parse_args()
    clock = time.thread_time if options.cpu_time else time.perf_counter
    print(f"{processor()}, {options.threads} threads, {options.rounds} rounds\n")
    print("| answers | drafts | tokens/s | tokens per verification | right | times plain |\n|---|---|---|---|---|---|")
    rounds = options.rounds + 1
    commands = commands_of(options.commands, options.count, rounds)
    for bundle in options.scan:
        ways = load(bundle, options.threads)
        show(f"{bundle.name}, SCAN", measure(ways, commands, clock))
        equal = same_answers(ways, commands[0])
        print(f"{bundle.name}: {equal} of {len(commands[0])} answers equal", file=sys.stderr)
    for bundle in options.bundle:
        ways = load(bundle, options.threads)
        words = tokenizer(min(4096, ways["off"].config.vocab_size))
        for kinds in zip(*(texts(number) for number in range(rounds))):
            asked = [
                [(words.encode(prompt).ids, words.encode(text).ids[: options.tokens])] for _, prompt, text in kinds
            ]
            show(f"{bundle.name}, {kinds[0][0]}", measure(ways, asked, clock))


if __name__ == "__main__":
    main()
