"""The export's stream of weights: memory, interruption, a full disk."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

from edge_export.checkpoint import Checkpoint, save_model
from edge_export.pack import Storage, export_graph
from tiny import make

INT4 = Storage(weights="int4")

KILLED = """
import os, signal, sys
from pathlib import Path
from edge_export import weights
from edge_export.pack import Storage, export_graph
weights.SYNC_BYTES = 1
def progress(done, total):
    if done > total / 2:
        os.kill(os.getpid(), signal.SIGKILL)
export_graph(Path(sys.argv[1]), Path(sys.argv[2]), Storage(weights="int4"), progress)
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_model(make("latent-experts"), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the checkpoint's tensors that were read."""
    names: list[str] = []
    original = Checkpoint.tensor

    def tensor(self: Checkpoint, name: str) -> torch.Tensor:
        names.append(name)
        return original(self, name)

    monkeypatch.setattr(Checkpoint, "tensor", tensor)
    return names


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_killed_export_goes_on_where_it_was(checkpoint: Path, tmp_path: Path, read: list[str]) -> None:
    export_graph(checkpoint, tmp_path / "whole", INT4)
    everything = len(read)
    result = subprocess.run([sys.executable, "-c", KILLED, checkpoint, tmp_path / "out"], check=False)
    assert result.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    read.clear()
    export_graph(checkpoint, tmp_path / "out", INT4)
    assert 0 < len(read) < everything * 0.8
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", "out", "whole"]


def test_what_was_begun_otherwise_is_not_gone_on_with(checkpoint: Path, tmp_path: Path, read: list[str]) -> None:
    subprocess.run([sys.executable, "-c", KILLED, checkpoint, tmp_path / "out"], check=False)
    export_graph(checkpoint, tmp_path / "out", Storage(weights="int8"))
    export_graph(checkpoint, tmp_path / "whole", Storage(weights="int8"))
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_no_more_is_in_memory_than_one_layers_tensors(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: set[int] = set()
    sizes: list[int] = []
    largest: list[int] = []
    original = Checkpoint.tensor

    def tensor(self: Checkpoint, name: str) -> torch.Tensor:
        found = original(self, name)
        alive.add(id(found))
        weakref.finalize(found, alive.discard, id(found))
        sizes.append(found.nbytes)
        largest.append(len(alive))
        return found

    monkeypatch.setattr(Checkpoint, "tensor", tensor)
    export_graph(checkpoint, tmp_path / "out", INT4)
    assert len(sizes) > 30
    assert max(largest) <= 2  # the weight and the bias of a projection, or the experts' two weights


def test_a_disk_without_room_is_refused_before_anything_is_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[str]
) -> None:
    export_graph(checkpoint, tmp_path / "out", Storage(weights="int8"))
    before = files(tmp_path / "out")
    read.clear()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(OSError, match="of room"):
        export_graph(checkpoint, tmp_path / "out", INT4)
    assert read == []
    assert files(tmp_path / "out") == before


FILLED = """
import sys
from pathlib import Path
from edge_export.pack import Storage, export_graph
disk = Path(sys.argv[2])
def fill(done, total):
    with (disk / "others").open("ab") as file:  # they take what was free
        try:
            while True:
                file.write(bytes(4096))
                file.flush()
        except OSError:
            pass
try:
    export_graph(Path(sys.argv[1]), disk / "out", Storage(), fill)
except OSError as error:
    print(error.errno, sorted(path.name for path in disk.iterdir()))
(disk / "others").unlink()
export_graph(Path(sys.argv[1]), disk / "out", Storage())
print(sorted(path.name for path in disk.iterdir()))
"""


def test_a_disk_that_others_fill_meanwhile_leaves_no_half_export(checkpoint: Path, tmp_path: Path) -> None:
    """On a small disk of its own, which a user namespace may mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = 'mount -t tmpfs -o size=2m none "$3" && exec "$0" -c "$1" "$2" "$3"'
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*inside, f"mount -t tmpfs none {disk}"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this system lets no user mount a file system of his own")
    result = subprocess.run(
        [*inside, script, sys.executable, FILLED, checkpoint, disk], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    full, done = result.stdout.splitlines()[-2:]
    assert full == f"{errno.ENOSPC} ['.out.partial', 'others']"
    assert done == "['out']"


def test_progress_ends_at_the_total(checkpoint: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    export_graph(checkpoint, tmp_path / "out", INT4, lambda done, total: told.append((done, total)))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == told[-1][1] > 0
