"""SCAN's shorter commands with plans as JSON: what a model learns from that answers in the form of a plan's schema.

    python samples/scan_rover/scan_json.py build/scan_json      # writes train.jsonl, test.jsonl, tokenizer.json, ...

``walk left`` becomes ``{"steps":[ {"name":"turn","amount": 1.5708 }, {"name":"forward","amount": 0.5 }]}``. The steps
are those of planner/instruct.yaml. A token is a whole piece of JSON, and the tokenizer puts a space between two.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterable
from pathlib import Path

from scan import SPECIAL_TOKENS, WORDS, pairs, write_pairs, write_tokenizer

OPEN, NEXT, CLOSE = '{"steps":[', "},", "}]}"
STEPS = {
    "I_WALK": ('{"name":"forward","amount":', "0.5"),
    "I_RUN": ('{"name":"forward","amount":', "1.0"),
    "I_TURN_LEFT": ('{"name":"turn","amount":', "1.5708"),
    "I_TURN_RIGHT": ('{"name":"turn","amount":', "-1.5708"),
    "I_JUMP": ('{"name":"jump"',),
    "I_LOOK": ('{"name":"look"',),
}
"""The tokens of each action."""
EMPTY = "]}"
"""Ends a plan without steps, which a model that is held to the schema must be able to say."""
PIECES = tuple(dict.fromkeys([OPEN, NEXT, CLOSE, EMPTY, *(piece for step in STEPS.values() for piece in step)]))
LONGEST = 8
"""Actions of the longest plan."""


def plan_of(actions: Iterable[str]) -> str:
    """A plan as the model is to say it."""
    steps = [" ".join(STEPS[action]) for action in actions]
    return f"{OPEN} " + f" {NEXT} ".join(steps) + f" {CLOSE}"


def split(seed: int = 0) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """All commands of at most ``LONGEST`` actions: 90 % for training and 10 % held out, at random."""
    short = [(command, actions.split()) for command, actions in pairs()]
    chosen = [(command, plan_of(actions)) for command, actions in short if len(actions) <= LONGEST]
    random.Random(seed).shuffle(chosen)
    cut = len(chosen) * 9 // 10
    return chosen[:cut], chosen[cut:]


def main() -> None:
    """Command line: writes the split and the tokenizer into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    train, test = split()
    write_pairs(folder / "train.jsonl", train)
    write_pairs(folder / "test.jsonl", test)
    write_tokenizer(folder, (*SPECIAL_TOKENS, *WORDS, *PIECES))
    print(f"{folder}/train.jsonl: {len(train)} pairs, test.jsonl: {len(test)}")


if __name__ == "__main__":
    main()
