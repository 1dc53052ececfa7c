"""llama.cpp's share of sessions.py, measured through llama-cpp-python, whose interpreter runs this file.

Its functions take the same measurements as those of the same name there; the result is one line of JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llama_cpp as llama

QUESTION = 16
BLOCK = 512


def timed(action: Callable[[], Any]) -> float:
    """How long an action took, in milliseconds."""
    started = time.perf_counter()
    action()
    return (time.perf_counter() - started) * 1e3


class Model:
    """A GGUF file and one context with so many sequences, each of so many tokens."""

    def __init__(self, path: Path, threads: int, sequences: int, length: int) -> None:
        self.model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
        parameters = llama.llama_context_default_params()
        parameters.n_ctx, parameters.n_seq_max = length * sequences, sequences
        parameters.n_batch = parameters.n_ubatch = BLOCK
        parameters.n_threads = parameters.n_threads_batch = threads
        self.context = llama.llama_init_from_model(self.model, parameters)
        if not self.context:
            raise RuntimeError(f"llama.cpp makes no context for {path}")
        self.memory = llama.llama_get_memory(self.context)
        self.vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self._batch = llama.llama_batch_init(BLOCK, 0, 1)

    def feed(self, rows: Sequence[tuple[int, int, int]]) -> None:
        """Feeds (token, position, sequence) and waits; the logits of the last of each sequence are computed."""
        for start in range(0, len(rows), BLOCK):
            part, batch = rows[start : start + BLOCK], self._batch
            last = {sequence: index for index, (_, _, sequence) in enumerate(part)}
            for index, (token, position, sequence) in enumerate(part):
                batch.token[index], batch.pos[index] = token, position
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
                batch.logits[index] = start + BLOCK >= len(rows) and last[sequence] == index
            batch.n_tokens = len(part)
            if llama.llama_decode(self.context, batch) != 0:
                raise RuntimeError("llama.cpp failed to decode")
        llama.llama_synchronize(self.context)

    def read(self, tokens: Sequence[int], start: int = 0, sequence: int = 0) -> None:
        """Feeds tokens of one sequence, from a position on."""
        self.feed([(token, start + index, sequence) for index, token in enumerate(tokens)])

    def forget(self, sequence: int | None = None) -> None:
        """Empties a sequence, or all."""
        if sequence is None:
            llama.llama_memory_clear(self.memory, True)
        else:
            llama.llama_memory_seq_rm(self.memory, sequence, -1, -1)

    def close(self) -> None:
        """Frees everything."""
        llama.llama_batch_free(self._batch)
        llama.llama_free(self.context)
        llama.llama_model_free(self.model)


def state_times(model: Model, context: int, rounds: int, folder: Path) -> dict[str, Any]:
    """As in sessions.py; a saved file is brought to the disk here, which llama.cpp leaves to others."""
    path, dice = folder / "session.llama", random.Random(0)
    tokens = [dice.randrange(3, model.vocab) for _ in range(context)]
    ids, found = (llama.llama_token * context)(*tokens), ctypes.c_size_t()
    model.read(tokens)

    def save() -> None:
        llama.llama_state_seq_save_file(model.context, str(path).encode(), 0, ids, context)
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    def restore() -> None:
        read = (llama.llama_token * context)()
        arguments = (model.context, str(path).encode(), 1, read, context, ctypes.byref(found))
        assert llama.llama_state_seq_load_file(*arguments) > 0

    times: dict[str, list[float]] = {"save_ms": [], "restore_ms": [], "fork_ms": [], "fork_step_ms": []}
    for _ in range(rounds):
        times["save_ms"].append(timed(save))
        times["restore_ms"].append(timed(restore))
        model.forget(1)
        fork = timed(lambda: llama.llama_memory_seq_cp(model.memory, 0, 1, -1, -1))
        times["fork_ms"].append(fork)
        times["fork_step_ms"].append(fork + timed(lambda: model.read([3], context, sequence=1)))
        model.forget(1)
    size = path.stat().st_size
    path.unlink()
    return {"context": context, "bytes": size, **times}


def prompt_times(model: Model, context: int, rounds: int) -> dict[str, Any]:
    """As in sessions.py; what is known is a state in memory, as llama-server's checkpoints are."""
    dice = random.Random(1)
    tokens = [dice.randrange(3, model.vocab) for _ in range(context + QUESTION)]
    unknown, known = [], []
    for _ in range(min(rounds, 3)):
        model.forget()
        unknown.append(timed(lambda: model.read(tokens)))
    model.forget()
    model.read(tokens[:context])
    size = llama.llama_state_seq_get_size(model.context, 0)
    state = (ctypes.c_uint8 * size)()
    llama.llama_state_seq_get_data(model.context, state, size, 0)

    def ask() -> None:
        assert llama.llama_state_seq_set_data(model.context, state, size, 0) > 0
        model.read(tokens[context:], context)

    for _ in range(rounds):
        model.forget()
        known.append(timed(ask))
    return {"context": context, "unknown_ms": unknown, "known_ms": known}


def batch_rates(model: Model, count: int, tokens: int, rounds: int) -> dict[str, Any]:
    """As in sessions.py; which tokens are fed does not depend on the logits."""
    rates = []
    for _ in range(max(1, min(rounds // 3, 5))):
        model.forget()
        for sequence in range(count):
            model.read([3 + (sequence * 7 + index) % (model.vocab - 3) for index in range(QUESTION)], 0, sequence)

        def steps() -> None:
            for step in range(tokens):
                model.feed([(3 + step, QUESTION + step, sequence) for sequence in range(count)])

        rates.append(count * tokens / timed(steps) * 1e3)
    return {"sessions": count, "tokens_per_s": rates}


def main() -> None:
    """Name, file and plan, as sessions.py gives them."""
    name, path, plan = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    silent = llama.llama_log_callback(lambda *_: None)  # kept, for llama.cpp does not keep it
    llama.llama_log_set(silent, None)
    rounds, threads, states, prompts = plan["rounds"], plan["threads"], [], []
    for context in plan["contexts"]:
        model = Model(path, threads, 2, context + 8)
        states.append(state_times(model, context, rounds, Path(plan["folder"])))
        model.close()
    for context in plan["prompts"]:
        model = Model(path, threads, 1, context + QUESTION + 8)
        prompts.append(prompt_times(model, context, rounds))
        model.close()
    model = Model(path, threads, max(plan["sessions"]), QUESTION + plan["tokens"] + 8)
    batches = [batch_rates(model, count, plan["tokens"], rounds) for count in plan["sessions"]]
    version = f"llama-cpp-python {llama.__version__}"
    found = {"name": f"llama.cpp, {name}", "version": version, "states": states, "prompts": prompts, "batches": batches}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
