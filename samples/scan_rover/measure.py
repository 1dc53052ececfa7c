"""Measures a bundle on this machine: exact match on held-out pairs, and the speed of single answers.

    python samples/scan_rover/measure.py BUNDLE build/scan/test.jsonl     # prints JSON

Runs in the robot's environment, which has neither torch nor onnx.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import edge_sdk

SPEED_PROMPTS = 20


def measure(path: str, pairs: list[dict[str, str]]) -> dict[str, float]:
    """Exact match over ``pairs``; medians of time to first token and tokens per second over a few long answers."""
    model = edge_sdk.load(path)
    started = time.perf_counter()
    answers = model.generate_batch([pair["prompt"] for pair in pairs], max_new_tokens=64)
    seconds = time.perf_counter() - started
    right = sum(answer == pair["completion"] for answer, pair in zip(answers, pairs))
    longest = sorted(pairs, key=lambda pair: len(pair["completion"]))[-SPEED_PROMPTS:]
    single = edge_sdk.load(path, threads=1, verify_hashes=False)
    timed = [single.generate(pair["prompt"], max_new_tokens=64) for pair in longest]
    return {
        "exact_match": right / len(pairs),
        "tokens_per_second": statistics.median(completion.tokens_per_second for completion in timed),
        "time_to_first_token_ms": statistics.median(completion.time_to_first_token_ms for completion in timed),
        "evaluation_seconds": seconds,
        "parameters": model.config.parameters(),
        "bytes": model.bundle.total_bytes(),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("pairs")
    options = parser.parse_args()
    with open(options.pairs, encoding="utf-8") as file:
        pairs = [json.loads(line) for line in file]
    json.dump(measure(options.bundle, pairs), sys.stdout)
    print()


if __name__ == "__main__":
    main()
