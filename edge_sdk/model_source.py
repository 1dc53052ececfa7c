"""Reads which model a path names, without its weights: a bundle, a ModelConfig as JSON, or what another room reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import cast

import msgspec

from edge_sdk.bundle import MANIFEST, WEIGHTS, Bundle
from edge_sdk.errors import ConfigError, explain
from edge_sdk.model import ModelConfig

READERS = "edge_sdk.model_readers"
"""The group of entry points of functions that make a ModelConfig of a checkpoint's folder or config.json. The rooms'
rule leaves no import from here to there (docs/decisions/0001): who can read a checkpoint registers itself."""

Reader = Callable[[Path], ModelConfig]


class StoredWeights(msgspec.Struct, frozen=True):
    """How a bundle's weights are stored."""

    label: str
    bytes: int


def read_model(path: Path) -> tuple[ModelConfig, StoredWeights | None]:
    """The model, and how its weights are stored where it is a bundle.

    Raises BundleError for a broken bundle, ConfigError for a file that is no model or that nothing here can read, and
    what the reader of a checkpoint raises.
    """
    if (path / MANIFEST).exists():
        manifest = Bundle.open(path, verify_hashes=False).manifest
        return manifest.model, StoredWeights(manifest.weights, manifest.files[WEIGHTS].bytes)
    file = path / "config.json" if path.is_dir() else path
    try:
        fields = json.loads(file.read_bytes())  # and not msgspec: a config.json may hold Infinity
    except (OSError, ValueError) as error:
        raise _no_model(path, error) from None
    if not isinstance(fields, dict):
        raise _no_model(path, "no JSON object")
    if not {"family", "layers"} <= set(fields):
        return checkpoint_reader()(path), None
    try:
        return msgspec.convert(fields, ModelConfig), None
    except (msgspec.ValidationError, ConfigError) as error:
        raise _no_model(path, error) from None


def checkpoint_reader() -> Reader:
    """What reads a checkpoint's config.json. Raises ConfigError where it is not installed."""
    for entry in entry_points(group=READERS):
        try:
            return cast(Reader, entry.load())
        except ImportError as error:
            missing = str(error)
            break
    else:
        missing = f"nothing registered for {READERS}"
    raise ConfigError(
        explain(
            "A checkpoint's config.json",
            expected="a reader of it",
            found=missing,
            todo="Install the workstation's part, pip install 'edge-sdk[export]', or give a bundle.",
        )
    )


def _no_model(path: Path, found: object) -> ConfigError:
    return ConfigError(
        explain(str(path), expected="a bundle, a checkpoint or a config.json", found=found, todo="Check the path.")
    )
