"""What the tests of the export share: bundles, since tracing them takes most of the time."""

from __future__ import annotations

import pytest

from edge_export.pack import Storage
from edge_sdk import Bundle
from exported import TinyBundle, bundle_of
from tiny import make


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    """The bundle of a tiny model, made once however many modules ask for it. Nobody may change it."""
    made: dict[tuple[str, Storage], Bundle] = {}

    def get(variant: str, storage: Storage) -> Bundle:
        if (variant, storage) not in made:
            made[variant, storage] = bundle_of(make(variant), storage, tmp_path_factory.mktemp(variant))
        return made[variant, storage]

    return get
