"""Tries whether an engine that TensorRT-RTX builds runs on this machine's GPU, and writes down what it says.

    python benchmarks/gpu_engine.py --out build/gpu

Takes the shipped teacher from checkpoint to answer by the commands of docs/tensorrt.md, up to the first that fails.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEACHER = ROOT / "samples" / "scan_rover" / "teacher"
PROMPT = "walk around left thrice and jump around right thrice"


def steps(folder: Path) -> list[list[str]]:
    """The commands in order."""
    export = [sys.executable, "-m", "edge_export.cli"]
    graph, bundle = str(folder / "onnx"), str(folder / "bundle")
    return [
        [*export, "onnx", str(TEACHER), "--out", graph],
        [*export, "bundle", str(TEACHER), "--graph", graph, "--out", bundle],
        [*export, "engine", bundle, "--backend", "tensorrt-rtx", "--board", "here"],
        [sys.executable, "-m", "edge_sdk.cli", "run", bundle, PROMPT, "--device", "tensorrt"],
    ]


def attempt(folder: Path, timeout_s: float) -> str:
    """Markdown: each command, how it ended and the end of what it said."""
    parts = []
    for command in steps(folder):
        limited = ["timeout", f"{timeout_s:g}", *command]  # which ends with 124
        result = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, check=False)
        said = (result.stdout + result.stderr).strip()[-2000:]
        shown = shlex.join(["python", *command[1:]]).replace(f"{ROOT}/", "")
        parts.append(f"`{shown}` ended with {result.returncode}:\n\n```text\n{said}\n```\n")
        if result.returncode != 0:
            break
    return "\n".join(parts)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    parser.add_argument("--timeout-s", type=float, default=120)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    text = attempt(options.out.resolve(), options.timeout_s)
    (options.out / "gpu_engine.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
