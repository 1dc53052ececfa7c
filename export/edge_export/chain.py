"""Runs a chain of ``edge-export`` commands from one file, and of a chain that was run before only what changed.

    variables:
      student: build/student
    stages:
      - prune: prune checkpoints/8b --params 4e9 --out {student}/pruned
      - float: onnx {student}/pruned --out {student}/float      # the steps of one stage run side by side
        int4: onnx {student}/pruned --weights int4 --out {student}/int4
      - bundle: bundle {student}/pruned --graph {student}/int4 --out {student}/bundle

A step is a command as one would type it, without ``edge-export``; paths are relative to where the chain is run. A step
is run again when its command, the files that it reads, or our code have changed, or what it made is gone.
"""

from __future__ import annotations

import hashlib
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import typer

import edge_export
import edge_plugins
import edge_sdk
from edge_export.terminal import console
from edge_sdk.errors import ConfigError, EdgeError, explain
from edge_sdk.files import new_file, sha256

HASHED_BYTES = 64 << 20
"""Of larger files size and time of change stand for the content."""

UsageError: Any = typer.BadParameter.__mro__[1]
"""click's; newer versions of typer carry a click of their own."""

STAMPS = Path("build", "edge-export-run")
"""Where it is noted what was run; below the working directory."""


class StepError(EdgeError):
    """A step of a chain failed."""


class Chain(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file's content."""

    stages: list[dict[str, str]]
    """Steps by name, those of one stage side by side."""
    variables: dict[str, str] = {}
    """What stands for ``{name}`` in the commands."""


@dataclass(frozen=True)
class Step:
    """One command, checked: what it reads and what it makes."""

    name: str
    arguments: tuple[str, ...]
    reads: tuple[Path, ...]
    makes: Path | None
    plans: bool
    """Whether the command has a dry run."""

    def key(self) -> str:
        """Changes with the command, the content of what it reads, and our code."""
        digest = hashlib.sha256(shlex.join(self.arguments).encode())
        digest.update(_sources().encode())
        for path in self.reads:
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file():
                    digest.update(f"{file}\n{_content(file)}\n".encode())
        return digest.hexdigest()


def read_chain(
    path: Path, group: typer.core.TyperGroup, settings: Mapping[str, str] = MappingProxyType({})
) -> list[list[Step]]:
    """The stages of a chain; ``settings`` stand for variables of it.

    Raises ConfigError, naming the step, for what the commands would not take, and for a variable that it does not have.
    """
    try:
        chain = msgspec.yaml.decode(path.read_bytes(), type=Chain)
    except (msgspec.DecodeError, OSError) as error:
        raise ConfigError(explain(str(path), expected="stages of commands", found=error, todo="Correct it.")) from None
    if unknown := sorted(set(settings) - set(chain.variables)):
        expected = ", ".join(sorted(chain.variables)) or "none"
        raise ConfigError(explain(f"Variables of {path}", expected=expected, found=unknown, todo="Correct them."))
    variables = {**chain.variables, **settings}
    names = [name for stage in chain.stages for name in stage]
    if len(set(names)) < len(names):
        raise ConfigError(explain(str(path), expected="a name of its own for every step", found=names, todo="Rename."))
    return [[_step(name, text, variables, group) for name, text in stage.items()] for stage in chain.stages]


def _step(name: str, text: str, variables: Mapping[str, str], group: typer.core.TyperGroup) -> Step:
    try:
        arguments = shlex.split(text.format_map(variables))
        command = group.commands[arguments[0]]
        given = command.make_context(arguments[0], arguments[1:], resilient_parsing=False).params
    except KeyError as error:
        known = ", ".join([*sorted(group.commands), *variables])
        raise ConfigError(
            explain(f"The step {name}", expected=f"one of {known}", found=error, todo="Correct it.")
        ) from None
    except (UsageError, ValueError, IndexError) as error:
        found = error.format_message() if isinstance(error, UsageError) else error
        raise ConfigError(
            explain(f"The step {name}", expected="a command of edge-export", found=found, todo="See its --help.")
        ) from None
    paths = [value for key, value in given.items() if key != "out"]
    reads = [
        Path(item)
        for value in paths
        for item in (value if isinstance(value, (list, tuple)) else [value])
        if isinstance(item, Path)
    ]
    makes = given.get("out")
    return Step(name, tuple(arguments), tuple(reads), makes and Path(makes), "dry_run" in given)


def run_chain(stages: list[list[Step]]) -> None:
    """Runs what is not done yet. Raises StepError where a command fails, after those beside it have ended."""
    for stage in stages:
        started = [(step, subprocess.Popen(_command(step))) for step in stage if not _show(step)]
        failed = []
        for step, process in started:
            if process.wait() != 0:
                failed.append(step.name)
                continue
            STAMPS.mkdir(parents=True, exist_ok=True)
            with new_file(_stamp(step)) as path:
                path.write_text(step.key())
        if failed:
            raise _failure(*failed)


def describe_chain(stages: list[list[Step]]) -> None:
    """Says what would be run, and what it would take by each command's own dry run. Writes nothing.

    Raises StepError where a dry run fails that had all it reads.
    """
    for step in [step for stage in stages for step in stage]:
        if _show(step) or not step.plans:
            continue
        result = subprocess.run([*_command(step), "--dry-run"], stderr=subprocess.PIPE, text=True, check=False)
        missing = [str(path) for path in step.reads if not path.exists()]
        if result.returncode != 0 and missing:
            console.print(f"  no estimate yet, without {', '.join(missing)}", highlight=False, soft_wrap=True)
            continue
        console.print(result.stderr, end="", markup=False, highlight=False, soft_wrap=True)
        if result.returncode != 0:
            raise _failure(step.name)


def _failure(*names: str) -> StepError:
    return StepError(
        explain(", ".join(names), expected="success", found="an error, see above", todo="Mend it; run again.")
    )


def _show(step: Step) -> bool:
    """Shows the command of a step; whether it is done."""
    done = _is_done(step)
    note = " (done)" if done else ""
    console.print(f"  $ edge-export {shlex.join(step.arguments)}{note}", style="dim", highlight=False, soft_wrap=True)
    return done


def _command(step: Step) -> list[str]:
    return [sys.executable, "-m", "edge_export.cli", *step.arguments]


def _is_done(step: Step) -> bool:
    stamp = _stamp(step)
    there = step.makes is None or step.makes.exists()
    return there and stamp.exists() and stamp.read_text() == step.key()


def _stamp(step: Step) -> Path:
    return STAMPS / hashlib.sha256(shlex.join(step.arguments).encode()).hexdigest()[:16]


def _content(file: Path) -> str:
    about = file.stat()
    return sha256(file) if about.st_size <= HASHED_BYTES else f"{about.st_size} {about.st_mtime_ns}"


def _sources() -> str:
    """Hash of the code that the commands run."""
    digest = hashlib.sha256()
    for path in _code():
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _code() -> Iterator[Path]:
    for package in (edge_export, edge_sdk, edge_plugins):
        assert package.__file__
        yield from sorted(Path(package.__file__).parent.rglob("*.py"))
