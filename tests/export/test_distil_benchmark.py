"""``benchmarks/distil.py``: its table on scores that one can add up by hand, and its prompts beside SCAN's test."""

from __future__ import annotations

import scan
from distil import table, wider_prompts


def rows(unit: float, **scores: list[float]) -> list[dict[str, object]]:
    return [
        {"model": name, "seed": seed, "score": score * unit, "parameters": 4000 if name == "teacher" else 1000}
        for name, found in scores.items()
        for seed, score in enumerate(found)
    ]


def test_exact_match_is_shown_as_a_share_of_the_teachers() -> None:
    scores = rows(0.01, teacher=[80], pruned=[4, 8], distilled=[76, 80], scratch=[40])
    found = [line.removeprefix("| ") for line in table("scan-simple", scores).splitlines()]
    assert found[2] == "teacher |  | 4,000 | 80.00 % |  |"
    assert found[3] == "pruned | 2 | 1,000 | 6.00 % (4.00 % to 8.00 %) |  |"
    assert found[4] == "pruned and distilled | 2 | 1,000 | 78.00 % (76.00 % to 80.00 %) | 97.5 % (95.0 % to 100.0 %) |"
    assert found[5] == "same size from scratch | 1 | 1,000 | 40.00 % | 50.0 % |"


def test_of_bits_per_byte_the_share_of_the_gap_is_shown_seed_by_seed() -> None:
    scores = rows(1.0, teacher=[2.0], pruned=[5.0], distilled=[2.5, 2.4, 2.1], scratch=[4.0, 3.0])
    distilled = table("bytes", scores).splitlines()[4]
    assert distilled == "| pruned and distilled | 3 | 1,000 | 2.333 (2.100 to 2.500) | 67.5 % (60.0 % to 75.0 %) |"
    assert table("bytes", scores).splitlines()[5].endswith("| 3.500 (3.000 to 4.000) |  |")


def test_prompts_for_the_teacher_hold_no_command_of_the_test() -> None:
    prompts = wider_prompts(200)
    assert len(set(prompts)) == 200
    assert prompts == wider_prompts(300)[:200]
    known, held_out = set(scan.commands()), [command for command, _ in scan.length_split()[1]]
    assert not known.intersection(prompts)
    assert not [prompt for prompt in prompts if any(f" {command} " in f" {prompt} " for command in held_out)]
