"""SCAN (Lake and Baroni 2018, arXiv 1711.00350): all of it, from the paper's grammar and interpretation function.

    python samples/scan_rover/scan.py build/scan        # writes train.jsonl, test.jsonl, tokenizer.json, ...

A command such as ``walk around left twice after jump`` stands for one sequence of actions. The paper's figure 6
is the grammar, its figure 7 the interpretation:

    C -> S and S | S after S | S      S -> V twice | V thrice | V
    V -> D opposite side | D around side | D side | D      D -> walk | look | run | jump | turn
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

PRIMITIVES = {"walk": "I_WALK", "look": "I_LOOK", "run": "I_RUN", "jump": "I_JUMP"}
TURNS = {"left": "I_TURN_LEFT", "right": "I_TURN_RIGHT"}
WORDS = ("and", "after", "twice", "thrice", "opposite", "around", "left", "right", "turn", *PRIMITIVES)
ACTIONS = (*PRIMITIVES.values(), *TURNS.values())
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "=>")
CHAT_TEMPLATE = "<s> {{ messages[-1].content }} =>"
LENGTH_SPLIT = 22
"""Longest action sequence of the length split's training set."""


def interpret(command: str) -> list[str]:
    """The actions that a command stands for."""
    for joint in ("and", "after"):
        if f" {joint} " in command:
            first, second = (interpret(part) for part in command.split(f" {joint} "))
            return first + second if joint == "and" else second + first
    words = command.split()
    repeats = {"twice": 2, "thrice": 3}.get(words[-1], 1)
    return _interpret_verb(words[:-1] if repeats > 1 else words) * repeats


def _interpret_verb(words: list[str]) -> list[str]:
    act = [PRIMITIVES[words[0]]] if words[0] in PRIMITIVES else []
    if len(words) == 1:
        return act
    turn = [TURNS[words[-1]]]
    if words[1] == "opposite":
        return turn * 2 + act
    if words[1] == "around":
        return (turn + act) * 4
    return turn + act


def commands() -> Iterator[str]:
    """All 20,910 commands of the grammar, each once."""
    directed = [f"{verb} {side}" for verb in (*PRIMITIVES, "turn") for side in TURNS]
    verbs = [*PRIMITIVES, *directed]
    verbs += [
        f"{verb} {manner} {side}"
        for verb in (*PRIMITIVES, "turn")
        for manner in ("opposite", "around")
        for side in TURNS
    ]
    single = [f"{verb}{repeat}" for verb in verbs for repeat in ("", " twice", " thrice")]
    yield from single
    for joint in ("and", "after"):
        for first in single:
            for second in single:
                yield f"{first} {joint} {second}"


def pairs() -> list[tuple[str, str]]:
    """Every command with its actions, separated by spaces."""
    return [(command, " ".join(interpret(command))) for command in commands()]


def simple_split(seed: int = 0) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """80 % for training and 20 % held out, at random."""
    shuffled = pairs()
    random.Random(seed).shuffle(shuffled)
    cut = len(shuffled) * 4 // 5
    return shuffled[:cut], shuffled[cut:]


def length_split() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Training on up to 22 actions, test on the longer ones (24 to 48)."""
    everything = pairs()
    short = [pair for pair in everything if len(pair[1].split()) <= LENGTH_SPLIT]
    return short, [pair for pair in everything if len(pair[1].split()) > LENGTH_SPLIT]


def write_pairs(path: Path, data: list[tuple[str, str]]) -> None:
    """One JSON object a line, ``{"prompt": ..., "completion": ...}``: what ``edge-export train`` reads."""
    lines = [json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in data]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_tokenizer(folder: Path, words: Sequence[str] = (*SPECIAL_TOKENS, *WORDS, *ACTIONS)) -> None:
    """A word-level tokenizer, by default over SCAN's vocabulary, and the prompt's form as a chat template."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 128, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Command line: writes both splits and the tokenizer into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, (train, test) in {"": simple_split(), "length_": length_split()}.items():
        write_pairs(folder / f"{prefix}train.jsonl", train)
        write_pairs(folder / f"{prefix}test.jsonl", test)
        print(f"{folder}/{prefix}train.jsonl: {len(train)} pairs, {prefix}test.jsonl: {len(test)}")
    write_tokenizer(folder)


if __name__ == "__main__":
    main()
