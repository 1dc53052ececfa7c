"""Single answers of a small model: our bundle on ONNX Runtime beside transformers on the same weights.

    python benchmarks/decode.py samples/scan_rover/teacher build/demo/teacher

Greedy decoding of the same prompts, one thread each, in turn; medians over all rounds. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

import edge_sdk
from edge_sdk.text import TextCodec
from machine import processor

PROMPTS = (
    "walk around left thrice and jump around right thrice",
    "look around right thrice after run opposite left twice",
    "jump around left twice and look around left thrice",
)


def answer_ours(model: edge_sdk.LanguageModel, prompt: str) -> int:
    """Tokens that the bundle's answer has."""
    with model.session() as session:
        return len(list(session.stream(prompt, max_new_tokens=64)))


@torch.inference_mode()
def answer_theirs(model: Any, codec: TextCodec, prompt: str) -> int:
    """Tokens that transformers' answer has, the end token not counted."""
    ids = torch.tensor([codec.encode_prompt(prompt)])
    answer = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, do_sample=False)
    return int(answer.shape[1] - ids.shape[1] - 1)


def rate(answer: Callable[[str], int], prompt: str) -> float:
    """Tokens per second of one whole answer, prefill included."""
    started = time.perf_counter()
    tokens = answer(prompt)
    return tokens / (time.perf_counter() - started)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ours = edge_sdk.load(options.bundle, threads=1)
    theirs: Any = AutoModelForCausalLM.from_pretrained(options.checkpoint, dtype=torch.float32)
    theirs.eval()
    runners: dict[str, Callable[[str], int]] = {
        f"Edge SDK, {ours.bundle.manifest.weights}, {ours.engine.name}": lambda prompt: answer_ours(ours, prompt),
        f"transformers {version('transformers')}, float32, torch {version('torch')}": lambda prompt: answer_theirs(
            theirs, ours.codec, prompt
        ),
    }
    rates: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(options.rounds + 1):  # the first round warms up
        for prompt in PROMPTS:
            for name, answer in runners.items():
                rates[name].append(rate(answer, prompt))
    medians = {name: statistics.median(values[len(PROMPTS) :]) for name, values in rates.items()}
    slowest = min(medians.values())
    print(f"{processor()}, 1 thread, {ours.config.parameters():,} parameters, {options.rounds} rounds\n")
    print("| | tokens/s | ratio |\n|---|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {median:,.0f} | {median / slowest:.1f} |")


if __name__ == "__main__":
    main()
