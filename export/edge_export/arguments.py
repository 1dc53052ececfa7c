"""What commands ask of their arguments before anything is read or written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from edge_sdk.errors import ConfigError, explain

Chosen = TypeVar("Chosen")


def chosen(options: Mapping[str, Any], kind: type[Chosen]) -> Chosen:
    """A struct of a command's options, which have its fields' names.

    Raises ConfigError that names the option and what it may be; msgspec's own errors name neither.
    """
    hints = get_type_hints(kind)
    for name, value in options.items():
        if get_origin(hints[name]) is Literal:
            require_choice(name, value, hints[name])
    return msgspec.convert(options, kind)


def require_choice(name: str, value: object, literal: Any) -> None:
    """Raises ConfigError unless an option's value is one of a ``Literal``."""
    allowed = get_args(literal)
    if value not in allowed:
        option, expected = f"--{name.replace('_', '-')}", f"one of {', '.join(map(str, allowed))}"
        raise ConfigError(explain(option, expected=expected, found=value, todo="Choose one."))


def require_target(out: Path, marker: str, *read: Path | None) -> None:
    """Refuses an ``--out`` that would replace what no earlier run of the command wrote, or what it reads.

    ``out`` becomes a new folder as a whole. It may be absent, empty, or hold a ``marker``: a file that the command
    writes. Raises ConfigError.
    """
    place = out.resolve()
    for path in (path for path in read if path is not None):
        if place == path.resolve() or place in path.resolve().parents:
            found = f"{out}, which would replace {path}"
            raise ConfigError(explain("--out", expected="another folder", found=found, todo="Choose a new name."))
    if not place.exists():
        return
    if not place.is_dir():
        raise ConfigError(explain("--out", expected="a folder", found=f"the file {out}", todo="Choose another name."))
    if not (place / marker).exists() and any(place.iterdir()):
        expected = f"a new folder, or one with a {marker} to replace"
        found = f"{out} with other files"
        raise ConfigError(explain("--out", expected=expected, found=found, todo=f"Take {out}/NAME."))
