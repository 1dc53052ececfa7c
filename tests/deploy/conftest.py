"""An SSH server for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from links import Server, sshd_program


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It, where OpenSSH's is installed."""
    if sshd_program() is None:
        pytest.skip("needs sshd: `make debian`")
    running = Server(tmp_path_factory.mktemp("ssh") / "server")
    yield running
    running.close()
