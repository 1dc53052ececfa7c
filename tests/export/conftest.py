"""What the tests of the export share: bundles, since tracing them takes most of the time."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec
import pytest

from edge_export.pack import Storage
from edge_sdk import Bundle
from exported import TinyBundle, bundle_of
from once import made_once
from sighted import make_checkpoint, make_sighted
from tiny import make


@pytest.fixture(scope="session")
def sighted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny LLaVA ``checkpoint`` and its ``bundle``. Nobody may change it."""

    def make_in(folder: Path) -> None:
        make_sighted(make_checkpoint(folder / "checkpoint"), folder, Storage(cache_dtype="float32"))

    return made_once(tmp_path_factory, "sighted", make_in)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    """The bundle of a tiny model, made once however many modules ask for it. Nobody may change it."""

    @cache
    def get(variant: str, storage: Storage) -> Bundle:
        name = "-".join(map(str, (variant, *msgspec.structs.astuple(storage))))
        folder = made_once(tmp_path_factory, name, lambda new: bundle_of(make(variant), storage, new))
        return Bundle.open(folder / "bundle")

    return get
