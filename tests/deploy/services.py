"""The service as the systemd unit starts it, and bundles for it to move over to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_sdk import Bundle
from edge_sdk.bundle import MANIFEST
from edge_sdk.deploy.store import Store


def versioned(bundle: Path, folder: Path, version: str) -> Bundle:
    """A copy with another version."""
    shutil.copytree(bundle, folder, ignore=shutil.ignore_patterns("engines"))
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["provenance"]["version"] = version
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return Bundle.open(folder)


def until(what: Callable[[], bool], timeout_s: float = 300) -> None:
    """Waits for something to become true."""
    end = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.1)


@contextmanager
def service(store: Store, port: int, *more: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """What the systemd unit starts."""
    command = [sys.executable, "-m", "edge_sdk.deploy.run", str(store.folder), "--settings", str(store.settings_folder)]
    command += ["--", "--port", str(port)]
    process = subprocess.Popen([*command, "--threads", "1", *more], env=os.environ | environment)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
