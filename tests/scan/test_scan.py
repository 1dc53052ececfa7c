"""SCAN as generated here against the counts and examples of the paper (arXiv 1711.00350)."""

from __future__ import annotations

import collections

import pytest

import scan


def test_counts_of_the_paper() -> None:
    pairs = scan.pairs()
    assert len(pairs) == 20_910
    assert len(dict(pairs)) == 20_910
    train, test = scan.length_split()
    assert (len(train), len(test)) == (16_990, 3_920)
    assert {len(actions.split()) for _, actions in train} <= set(range(1, 23))
    assert min(len(actions.split()) for _, actions in test) == 24
    assert max(len(actions.split()) for _, actions in test) == 48


def test_simple_split_is_a_fixed_partition() -> None:
    train, test = scan.simple_split()
    assert (len(train), len(test)) == (16_728, 4_182)
    assert collections.Counter(train + test) == collections.Counter(scan.pairs())
    assert scan.simple_split() == (train, test)
    assert scan.simple_split(seed=1)[1] != test


@pytest.mark.parametrize(
    ("command", "actions"),
    [
        # Figure 1 of the paper.
        ("jump", "I_JUMP"),
        ("jump left", "I_TURN_LEFT I_JUMP"),
        ("jump around right", "I_TURN_RIGHT I_JUMP I_TURN_RIGHT I_JUMP I_TURN_RIGHT I_JUMP I_TURN_RIGHT I_JUMP"),
        ("turn left twice", "I_TURN_LEFT I_TURN_LEFT"),
        ("jump thrice", "I_JUMP I_JUMP I_JUMP"),
        ("jump opposite left and walk thrice", "I_TURN_LEFT I_TURN_LEFT I_JUMP I_WALK I_WALK I_WALK"),
        (
            "jump opposite left after walk around left",
            "I_TURN_LEFT I_WALK I_TURN_LEFT I_WALK I_TURN_LEFT I_WALK I_TURN_LEFT I_WALK "
            "I_TURN_LEFT I_TURN_LEFT I_JUMP",
        ),
        ("turn opposite right", "I_TURN_RIGHT I_TURN_RIGHT"),
        ("turn around left", "I_TURN_LEFT I_TURN_LEFT I_TURN_LEFT I_TURN_LEFT"),
    ],
)
def test_examples_of_the_paper(command: str, actions: str) -> None:
    assert " ".join(scan.interpret(command)) == actions
    assert (command, actions) in scan.pairs()
