"""Which boards there are, and how they are reached: ``user@host`` or a file that names a group of them."""

from __future__ import annotations

from pathlib import Path
from typing import Optional
from urllib.parse import urlsplit

import msgspec

from edge_sdk.errors import DeployError, explain

STORE = "~/.local/share/edge-sdk"


class Board(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One board."""

    host: str
    """``user@host``, ``user@host:port`` or a name from ~/.ssh/config."""
    store: str = STORE
    """The store's folder on the board."""
    python: str = "python3"
    """The board's Python that has edge-sdk[deploy]."""
    settings: Optional[str] = None
    """Where board.json and trusted_keys are, if not in the store."""

    def __post_init__(self) -> None:
        self.address()

    def address(self) -> tuple[str | None, str, int | None]:
        """User, host and port. Raises DeployError, a ValueError within a file."""
        try:
            parts = urlsplit(f"ssh://{self.host}")
            if parts.hostname and parts.netloc == self.host and not self.host.startswith("-"):
                return parts.username, parts.hostname, parts.port
        except ValueError:
            pass  # of a port that is no number
        raise BoardError(explain("A board", expected="user@host", found=repr(self.host), todo="Correct it."))


class BoardError(DeployError, ValueError):
    """A board is not described as it should be; msgspec says where in a file."""


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of a group's file."""

    boards: dict[str, Board]
    """By the names that they are to be shown with."""


def read_group(path: Path) -> dict[str, Board]:
    """The boards that a YAML file names. Raises DeployError."""
    try:
        group = msgspec.yaml.decode(path.read_bytes(), type=Group)
    except ImportError as error:
        raise DeployError(
            explain("Groups", expected="pyyaml", found=error, todo="pip install 'edge-sdk[deploy]'")
        ) from None
    except (OSError, msgspec.DecodeError) as error:
        todo = "docs/deploy.md shows one."
        raise DeployError(explain(str(path), expected="a group of boards", found=error, todo=todo)) from None
    if not group.boards:
        raise DeployError(explain(str(path), expected="boards", found="none", todo="docs/deploy.md shows one."))
    return group.boards
