"""What packing is worth: tokens that training learns from in a second, padding, and how large batches are.

    python benchmarks/packing.py                                   # the table of docs/distil.md
    python benchmarks/packing.py --rounds 1 --steps 2              # whether it runs

Three ways of making batches of the same samples take turns: samples of similar lengths, packed rows of samples of all
lengths, and samples of all lengths, padded. Samples are SCAN's pairs in batches of 64, for the demo's teacher, and
pieces of at most 256 and 1024 bytes of texts and of their paragraphs in batches of 16, for the byte-level model of
``benchmarks/distil.py``. The time of a training step is the processor's, of one thread, so that others on the machine
count less. Tokens are those of samples, without padding.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch

from distil import BYTES_MODEL, END, ROVER, read_texts, scan_task
from edge_export.checkpoint import read_config
from edge_export.data import Batch, Batches, Sample, collate
from edge_export.documents import cut
from edge_export.families import nemotron_h
from edge_export.torch_model import HybridLM
from edge_export.training import cross_entropy
from edge_sdk.model import ModelConfig
from machine import busy, processor


class Padded(Batches):
    """The samples of packed batches, each in a row of its own."""

    def at(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""
        return collate(self.samples, super().at(step).indices)


@dataclass(frozen=True)
class Work:
    """A model and what it learns from."""

    config: ModelConfig
    samples: Sequence[Sample]
    batch_size: int

    def sources(self) -> dict[str, Batches]:
        """The ways of making batches."""
        return {
            "similar lengths": Batches(self.samples, self.batch_size, 0),
            "packed": Batches(self.samples, self.batch_size, 0, packing=True),
            "all lengths, padded": Padded(self.samples, self.batch_size, 0, packing=True),
        }


def works() -> dict[str, Work]:
    """By name."""
    made = {"SCAN's pairs": Work(read_config(ROVER / "teacher"), scan_task("simple").train, 64)}
    texts = [text.encode() for text in read_texts()]
    paragraphs = [part for text in texts for part in text.split(b"\n\n") if part.strip()]
    config = nemotron_h.parse_config(dict(BYTES_MODEL))
    for name, documents in (("texts", texts), ("paragraphs", paragraphs)):
        for length in (256, 1024):
            samples = [sample for document in documents for sample in cut([*document, END], length)]
            made[f"{name}, {length}"] = Work(config, samples, 16)
    return made


def tokens_of(source: Batches, batch: Batch) -> int:
    """Positions of a batch's samples, without padding."""
    return int((source.lengths[list(batch.indices)] - 1).sum())


class Learner:
    """A model that takes steps of training."""

    def __init__(self, config: ModelConfig) -> None:
        self.model = HybridLM(config)
        self.model.reset_parameters(0)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    def tokens_per_second(self, source: Batches, steps: range) -> float:
        """Of these steps together."""
        learnt, started = 0, time.process_time()
        for step in steps:
            batch = source.at(step)
            torch.autograd.backward(cross_entropy(self.model, batch))
            self.optimizer.step()
            self.optimizer.zero_grad()
            learnt += tokens_of(source, batch)
        return learnt / (time.process_time() - started)


def epoch(source: Batches) -> tuple[float, str]:
    """The share of an epoch's positions that is padding, and those of its smallest and its largest batch."""
    counts, tokens = [], 0
    for step in range(source.per_epoch):
        batch = source.at(step)
        counts.append(batch.input_ids.numel())
        tokens += tokens_of(source, batch)
    return 1 - tokens / sum(counts), f"{min(counts):,} to {max(counts):,}"


def measure(work: Work, rounds: int, steps: int) -> list[tuple[str, list[float], float, str]]:
    """Of each way its name, tokens per second by round, and what :func:`epoch` says."""
    learner, sources = Learner(work.config), work.sources()
    rates: dict[str, list[float]] = {name: [] for name in sources}
    for source in sources.values():
        learner.tokens_per_second(source, range(1))
    for turn in range(rounds):
        for name, source in sources.items():
            rates[name].append(learner.tokens_per_second(source, range(turn * steps, (turn + 1) * steps)))
    return [(name, rates[name], *epoch(source)) for name, source in sources.items()]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of a way in a round")
    parser.add_argument("--only", nargs="+", help="kinds of samples, by their beginning")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{processor()}, torch {torch.__version__}, busy before: {busy(2.0):.0%}\n")
    print("| samples | batches | tokens/s | padding | positions of a batch |\n|---|---|---|---|---|")
    for kind, work in works().items():
        if options.only and not kind.startswith(tuple(options.only)):
            continue
        for name, rates, padding, sizes in measure(work, options.rounds, options.steps):
            rate = f"{median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"
            print(f"| {kind} | {name} | {rate} | {padding:.1%} | {sizes} |", flush=True)


if __name__ == "__main__":
    main()
