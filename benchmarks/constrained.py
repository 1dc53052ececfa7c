"""What a constraint costs for each token, by the thread's CPU time: python benchmarks/constrained.py tokenizer.json"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from edge_sdk.structured import Constraint, Grammar, GrammarCompiler

COMMAND = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "action": {"enum": ["move", "grip", "stop", "look around"]},
        "speed_m_s": {"type": "number", "minimum": 0, "maximum": 2.5},
        "target": {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3},
        "note": {"type": "string"},
        "retry": {"type": "boolean"},
    },
    "required": ["name", "action", "speed_m_s", "target"],
    "additionalProperties": False,
}
PLAN = {
    "type": "object",
    "properties": {"plan": {"type": "array", "items": COMMAND, "maxItems": 20}, "why": {"type": "string"}},
    "required": ["plan", "why"],
}
REPEATS = 7


def cases() -> Iterator[tuple[str, Grammar, str]]:
    """Grammars, each with an answer that a model might write."""
    command = {"name": "Rover 7 of the lab", "action": "move", "speed_m_s": 1.25, "target": [1.0, 2.5, -3.125]}
    command |= {"note": 'be careful with the door, it "sticks"', "retry": True}
    plan = {"plan": [command] * 8, "why": "because the path is free"}
    yield "a command", Grammar.json_schema(COMMAND), json.dumps(command)
    yield "8 commands, indented", Grammar.json_schema(PLAN), json.dumps(plan, indent=2)
    yield "any object", Grammar.json_object(), json.dumps(plan)
    yield "regex", Grammar.regex("([A-Z_]+ )*[A-Z_]+"), "I_WALK I_TURN_LEFT I_WALK " * 10 + "I_RUN"
    yield "choice", Grammar.choice(["move forward", "turn left", "turn right", "stop"]), "turn right"


def step_us(start: Constraint, ids: list[int]) -> np.ndarray:
    """CPU time of apply, choose and accept for every token, the best of all repeats, (tokens, 3) float64."""
    noise = np.random.default_rng(0).standard_normal(len(start.allowed())).astype(np.float32)
    times = np.zeros((REPEATS, len(ids), 3))
    for repeat in range(REPEATS):
        constraint = start.copy()
        for index, token_id in enumerate(ids):
            logits, marks = noise.copy(), [time.thread_time()]
            constraint.apply(logits)
            marks.append(time.thread_time())
            if constraint.choose(token_id, len(ids) - index + start.needed) != token_id:
                raise SystemExit(f"token {index} was not let through")
            marks.append(time.thread_time())
            constraint.accept(token_id)
            times[repeat, index] = np.diff([*marks, time.thread_time()])
    best: np.ndarray = times.min(axis=0) * 1e6
    return best


def main() -> None:
    """Prints a row of a Markdown table for each grammar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizer", type=Path, help="a tokenizer.json")
    parser.add_argument("--end", type=int, default=2, help="the id of the end token")
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(arguments.tokenizer))
    started = time.process_time()
    compiler = GrammarCompiler(tokenizer, (arguments.end,))
    print(f"compiler for {tokenizer.get_vocab_size()} tokens: {time.process_time() - started:.1f} s\n")
    print("| grammar | compiled, ms | tokens | apply | choose | accept | together, median | p99 | most |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, grammar, text in cases():
        started = time.process_time()
        start = compiler.compile(grammar)
        compile_ms = (time.process_time() - started) * 1e3
        best = step_us(start, tokenizer.encode(text, add_special_tokens=False).ids)
        together = best.sum(axis=1)
        spread = [*np.median(best, axis=0), *np.quantile(together, [0.5, 0.99, 1])]
        print(f"| {name} | {compile_ms:.0f} | {len(best)} | {' | '.join(f'{value:.0f}' for value in spread)} |")


if __name__ == "__main__":
    main()
