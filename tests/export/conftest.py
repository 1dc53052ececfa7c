"""What the tests of the export share: bundles, since tracing them takes most of the time."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_export.pack import Storage
from edge_sdk import Bundle
from exported import TinyBundle, bundle_of
from sighted import make_checkpoint, make_sighted
from tiny import make


@pytest.fixture(scope="session")
def sighted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny LLaVA ``checkpoint`` and its ``bundle``. Nobody may change it."""
    folder = tmp_path_factory.mktemp("sighted")
    make_sighted(make_checkpoint(folder / "checkpoint"), folder, Storage(cache_dtype="float32"))
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    """The bundle of a tiny model, made once however many modules ask for it. Nobody may change it."""
    made: dict[tuple[str, Storage], Bundle] = {}

    def get(variant: str, storage: Storage) -> Bundle:
        if (variant, storage) not in made:
            made[variant, storage] = bundle_of(make(variant), storage, tmp_path_factory.mktemp(variant))
        return made[variant, storage]

    return get
