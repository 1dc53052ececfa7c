"""Power cuts of a board with a kernel and disks of its own in deployments: it runs what it promised to run."""

from __future__ import annotations

import random
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from disk_log import cuts, entry_count, logged_disk
from edge_sdk.deploy.store import Store
from edge_sdk.errors import DeployError
from small_bundles import install, runs, small_bundle
from virtual_board import VirtualBoard, data_disk, image

pytestmark = pytest.mark.slow

STORE = "store"
VERSIONS = ("1", "2", "3")
MOST_CUTS = 400
POWER_CUTS = 4


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return {version: small_bundle(folder / version, version, chunks=6).path for version in (*VERSIONS, "9")}


@contextmanager
def mounted(disk: Path, folder: Path) -> Iterator[Path]:
    """The file system on a copy of a board's disk, after its journal was replayed by this machine's kernel."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", disk, folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def deploy(board: VirtualBoard, bundle: Path) -> None:
    board.edge_sdk("deploy", bundle, options=f"--store /data/{STORE}")


def test_every_disk_that_a_power_cut_could_leave_runs_what_was_promised(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    """Three deployments in a row; once one was reported, no cut brings an older bundle back."""
    disk, log, image_of_cut = tmp_path / "data.img", tmp_path / "log", tmp_path / "cut.img"
    data_disk(disk)
    before = tmp_path / "before.img"
    shutil.copyfile(disk, before)
    shutil.copyfile(disk, image_of_cut)
    try:
        with mounted(image_of_cut, tmp_path / "mounted"):
            pass
    except subprocess.CalledProcessError:
        pytest.skip("needs loop devices")
    board = VirtualBoard(tmp_path / "board", image(), logged_disk(disk, log))
    try:
        board.power_on()
        board.run("sync")
        begin, reported = entry_count(log), list[int]()
        for version in VERSIONS:
            deploy(board, bundles[version])
            reported.append(entry_count(log))
        board.run("sync")
        end = entry_count(log)
    finally:
        board.cut_power()
    every = max(1, (end - begin) * 4 // MOST_CUTS)
    found, count = set[str](), 0
    for count, (number, loss) in enumerate(cuts(log, before, image_of_cut, begin, end, every), 1):
        promised = sum(number >= one for one in reported)
        with mounted(image_of_cut, tmp_path / "mounted") as folder:
            version = version_on(folder / STORE)
            assert int(version) >= promised, f"after entry {number}, {loss}: {version}, though {promised} was reported"
            found.add(version)
            if count % 10 == 0:
                store = Store(folder / STORE)
                install(store, small_bundle(tmp_path / str(count), "9"))
                assert runs(store) == "9"
    print(f"{end - begin} writes and flushes, {count} cuts")
    assert found == {"0", *VERSIONS}


def version_on(folder: Path) -> str:
    """What a board would run, which must be whole; 0 where nothing was deployed yet."""
    if not folder.exists():
        return "0"
    with suppress(DeployError):
        return runs(Store(folder))
    return "0"


def test_a_board_whose_power_is_cut_in_a_deployment_starts_with_a_good_slot(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    """The emulator is killed somewhere in a deployment, or after it; what its kernel had not written is lost."""
    rng, found = random.Random(2), list[str]()
    board = VirtualBoard(tmp_path / "board", image(), data_disk(tmp_path / "data.img"))
    try:
        board.power_on()
        deploy(board, bundles["1"])
        for cut in range(POWER_CUTS):
            wanted = VERSIONS[1 + cut % 2]
            cutting = threading.Timer(rng.uniform(2, 30), board.cut_power)
            cutting.start()
            with suppress(AssertionError, subprocess.TimeoutExpired):
                board.edge_sdk("deploy", bundles[wanted], options=f"--store /data/{STORE} --force", timeout_s=40)
            cutting.join()
            board.power_on()
            said = board.says(f"/opt/edge/bin/python -c '{LOOK}'")
            assert said in VERSIONS
            found.append(said)
        deploy(board, bundles["3"])
    finally:
        board.cut_power()
    print(f"after {POWER_CUTS} power cuts: {found}")


LOOK = f"""
from pathlib import Path
from edge_sdk import Bundle
from edge_sdk.deploy.store import Store
print(Bundle.open(Store(Path("/data/{STORE}")).active_bundle()).manifest.provenance["version"])
"""
