"""An SSH server for the tests of this folder, and a store that the service can run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_sdk.deploy.store import Store
from links import Server, sshd_program
from services import versioned
from small_bundles import install


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It, where OpenSSH's is installed."""
    if sshd_program() is None:
        pytest.skip("needs sshd: `make debian`")
    running = Server(tmp_path_factory.mktemp("ssh") / "server")
    yield running
    running.close()


@pytest.fixture
def store(scan_bundle: Path, tmp_path: Path) -> Store:
    """With version 1, which is healthy or given up soon."""
    made = Store(tmp_path / "store")
    made.configure(b'{"healthy_after_s": 0.5, "max_starts": 2}', None)
    install(made, versioned(scan_bundle, tmp_path / "one", "1"))
    return made
