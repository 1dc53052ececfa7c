"""How long a model takes to start in a fresh process on warm caches: imports, loading, first token; beside llama.cpp.

    python benchmarks/startup.py BUNDLE ... [--llama-python PYTHON --gguf NAME=FILE ...]

Contenders take turns; a first round, which is left out, warms up: files are in the page cache then, our weights packed,
files hashed. The first token answers a prompt of 16. Nothing is imported here that the contenders import.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

PROMPT = [5] * 16
PHASES = ("interpreter", "imports", "engine's library", "load", "first token")


def start_ours(path: str, threads: int, mark: Callable[[], None]) -> None:
    """Calls ``mark`` at the end of each phase."""
    from edge_sdk import load

    mark()
    import onnxruntime  # noqa: F401

    mark()
    model = load(path, device="cpu", threads=threads)
    mark()
    with model.session() as session:
        session.append(PROMPT)
        session.generate(max_new_tokens=1)
        mark()


def start_llama(path: str, threads: int, mark: Callable[[], None]) -> None:
    """The same; Python's part of its library is counted as its imports."""
    mark()
    from sessions_llama import Model  # type: ignore[import-not-found, unused-ignore]

    mark()
    model = Model(Path(path), threads, 1, 512)
    mark()
    model.read(PROMPT)
    mark()


def work(kind: str, path: str, threads: int, started_s: float) -> None:
    """In a contender's process: prints the seconds that each phase took, since its parent started it."""
    marks = [started_s, time.monotonic()]
    start = start_ours if kind == "ours" else start_llama
    start(path, threads, lambda: marks.append(time.monotonic()))
    print(json.dumps([end - begin for begin, end in itertools.pairwise(marks)]))


def measure(python: str, kind: str, path: str, threads: int) -> list[float]:
    """Seconds by phase, and of all together."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [python, __file__, "worker", kind, path, str(threads), str(time.monotonic())]
    chatter = subprocess.DEVNULL if kind == "llama" else None  # it tells all that it loads
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=chatter, env=environment).stdout
    phases = [float(seconds) for seconds in json.loads(output.splitlines()[-1])]
    return [*phases, sum(phases)]


def table(names: Sequence[str], rounds: Sequence[Sequence[Sequence[float]]]) -> str:
    """Medians in milliseconds, of the sum also the largest, as Markdown; ``rounds`` by contender."""
    lines = [f"| ms | {' | '.join(PHASES)} | together | at most |", f"|---|{'---|' * (len(PHASES) + 2)}"]
    for name, measured in zip(names, rounds):
        columns = list(zip(*measured))
        cells = [f"{median(column) * 1e3:,.0f}" for column in columns] + [f"{max(columns[-1]) * 1e3:,.0f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", metavar="BUNDLE")
    parser.add_argument("--llama-python", default=sys.executable, help="an interpreter that has llama-cpp-python")
    parser.add_argument("--gguf", nargs="+", default=[], metavar="NAME=FILE")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    contenders = [(f"Edge SDK, {Path(path).name}", sys.executable, "ours", path) for path in options.bundles]
    for name, _, path in (text.partition("=") for text in options.gguf):
        contenders.append((f"llama.cpp, {name}", options.llama_python, "llama", path))
    rounds: list[list[list[float]]] = [[] for _ in contenders]
    for number in range(options.rounds + 1):
        for (_, python, kind, path), measured in zip(contenders, rounds):
            seconds = measure(python, kind, path, options.threads)
            if number:
                measured.append(seconds)
    print(table([name for name, *_ in contenders], rounds))


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        work(sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5]))
    else:
        main()
