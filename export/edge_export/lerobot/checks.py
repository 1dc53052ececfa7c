"""How a dataset is refused: one form for everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from edge_export.extras import imported
from edge_sdk.errors import ConfigError, explain


def refuse(where: Path | str, expected: object, found: object) -> NoReturn:
    """Raises ConfigError: what of a dataset is wrong."""
    todo = "Repair the dataset, or use another copy of it."
    raise ConfigError(explain(str(where), expected=expected, found=found, todo=todo))


def require(condition: bool, where: Path | str, expected: object, found: object) -> None:
    """Raises ConfigError where the condition does not hold."""
    if not condition:
        refuse(where, expected, found)


@contextmanager
def refused(path: Path, expected: str, *errors: type[Exception]) -> Iterator[None]:
    """Turns errors of the file system, of parsers and ``errors`` into the ConfigError that names the file."""
    caught: tuple[type[Exception], ...] = (ValueError, TypeError, KeyError, *errors)
    try:
        yield
    except OSError as error:  # a pyarrow error that is one has no errno, but a message
        refuse(path, expected, error.strerror or error)
    except caught as error:
        if isinstance(error, ConfigError):
            raise
        refuse(path, expected, error)


def import_pyarrow() -> ModuleType:
    """The package that reads and writes parquet. Raises ConfigError where it is missing."""
    return imported("pyarrow.parquet", extra="episodes", needed_by="Episodes")


def import_av() -> ModuleType:
    """The package that reads and writes videos. Raises ConfigError where it is missing."""
    return imported("av", extra="episodes", needed_by="Episodes")
