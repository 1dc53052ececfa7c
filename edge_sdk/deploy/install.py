"""On the board: a bundle is received in place, checked, and switched to.

Chunks are written where they belong in the bundle's files, and what is there already is told by its hash: an
interrupted transfer needs no book-keeping that a power cut could contradict.
"""

from __future__ import annotations

import datetime
import errno
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from edge_sdk.bundle import MANIFEST, Bundle, Manifest, check_inside, read_manifest
from edge_sdk.deploy.acceptance import ACCEPTANCE, Measured
from edge_sdk.deploy.chunks import CHUNK_BYTES, Known, Offer, chunk_count, digest, read_chunk
from edge_sdk.deploy.record import BoardSettings, Slot, SlotName, parse_version, version_of
from edge_sdk.deploy.signing import SIGNATURE, verify
from edge_sdk.deploy.store import Store
from edge_sdk.errors import BundleError, DeployError, explain
from edge_sdk.files import put_directory, sha256

OFFER = "offer.msgpack"
"""Beside a bundle's files: its chunks, by which later bundles find what they have in common with it."""

Say = Callable[[str], None]
"""Told what is being done."""


class Installation:
    """One bundle on its way into a store, whose installation lock is held."""

    def __init__(self, store: Store, offer: Offer, *, force: bool = False) -> None:
        """Checks what can be checked before anything is sent. Raises BundleError and DeployError."""
        self._store, self._offer, self._force = store, offer, force
        self._folder = store.incoming / offer.bundle_id
        self._missing = set[tuple[str, int]]()
        self._check_policy()

    @property
    def is_active(self) -> bool:
        """Whether this bundle is active already, and whole."""
        running = self._store.read().running
        if running is None or running.bundle_id != self._offer.bundle_id:
            return False
        try:
            Bundle.open(self._store.path_of(running))
        except BundleError:
            return False
        return True

    def begin(self) -> list[tuple[str, int]]:
        """Takes what is on this machine already; returns the chunks that are missing, by file and number.

        Raises DeployError where the disk has no room; then nothing of the bundle stays.
        """
        with self._undone_if_full():
            manifest = self._write_descriptions()
            known, whole = self._known()
            for name, entry in manifest.files.items():
                path = self._folder / name
                twins = whole.get(entry.sha256, [])
                if not path.exists() and (twin := next((one for one in twins if sha256(one) == entry.sha256), None)):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    os.link(twin, path)
                elif not path.exists() or path.stat().st_nlink == 1:
                    self._missing |= {(name, index) for index in self._fill(path, name, entry.bytes, known)}
        return sorted(self._missing)

    def receive(self, name: str, index: int, data: bytes) -> None:
        """Takes a chunk that is missing. Raises DeployError for any other, and for a full disk."""
        if (name, index) not in self._missing:
            todo = "Deploy again."
            raise DeployError(explain(f"Chunk {index} of {name}", expected="a missing one", found="it", todo=todo))
        if digest(data) != self._offer.chunks[name][index]:
            found = digest(data).hex()
            wanted = self._offer.chunks[name][index].hex()
            todo = "The link or the bundle altered it: deploy again."
            raise DeployError(explain(f"Chunk {index} of {name}", expected=f"sha256 {wanted}", found=found, todo=todo))
        with self._undone_if_full():
            _write_chunk(self._folder / name, index, data)
        self._missing.discard((name, index))

    def commit(self, say: Say) -> tuple[SlotName, Slot]:
        """Checks the whole bundle and switches to it. Raises BundleError and DeployError; then nothing has changed."""
        if self._missing:
            found = f"{len(self._missing)} missing"
            raise DeployError(explain("The bundle", expected="all chunks", found=found, todo="Deploy again."))
        say("checking hashes")
        try:
            bundle = Bundle.open(self._folder)
        except BundleError:
            shutil.rmtree(self._folder)  # chunks that are right make a file that is wrong: the offer itself was
            raise
        if (self._folder / MANIFEST).read_bytes() != self._offer.manifest:
            raise BundleError(
                explain(MANIFEST, expected="what was sent", found="another", todo="Check the board's disk.")
            )
        signed_by = self._check_policy()  # again: the settings may have changed since
        settings = self._store.settings()
        if settings.prepare:
            say("preparing")
            _run([*settings.prepare, str(self._folder)], settings.prepare_timeout_s, "The preparation")
        measured = self._accept(bundle, settings, say)
        say("switching")
        put_directory(self._folder, self._store.bundles / self._offer.bundle_id)
        slot = Slot(
            bundle_id=self._offer.bundle_id,
            version=version_of(bundle.manifest),
            installed=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            signed_by=signed_by,
            step_ms=None if measured is None else measured.step_ms,
        )
        return self._store.activate(slot), slot

    def _check_policy(self) -> str:
        """Who signed it, if that is asked for. Raises DeployError for a bundle that this board does not want."""
        settings, signed_by = self._store.settings(), ""
        decoded = _decode(self._offer.manifest)
        if settings.require_signature:
            signed_by = verify(self._offer.manifest, self._offer.signature, self._store.trusted_keys())
        version, running = version_of(decoded), self._store.read().running
        least = [settings.minimum_version] + ([] if running is None else [running.version])
        newest = max(least, key=parse_version)
        if not self._force and parse_version(version) < parse_version(newest):
            todo = "Deploy a newer bundle, go back with `edge-sdk rollback`, or insist with --force."
            raise DeployError(explain("The version", expected=f"{newest} or newer", found=version, todo=todo))
        if settings.require_acceptance and ACCEPTANCE not in decoded.files:
            todo = "Add them with `edge-export bundle --acceptance`."
            raise DeployError(explain("The bundle", expected="acceptance vectors", found="none", todo=todo))
        return signed_by

    def _write_descriptions(self) -> Manifest:
        self._folder.mkdir(exist_ok=True)
        (self._folder / MANIFEST).write_bytes(self._offer.manifest)
        manifest = read_manifest(self._folder)
        needed = {name: chunk_count(entry.bytes) for name, entry in manifest.files.items()}
        found = {name: len(digests) for name, digests in self._offer.chunks.items()}
        if found != needed or {MANIFEST, SIGNATURE, OFFER} & set(needed):
            raise DeployError(explain("The list of chunks", expected=needed, found=found, todo="Deploy again."))
        for name in needed:
            check_inside(self._folder, name)
        (self._folder / SIGNATURE).unlink(missing_ok=True)
        if self._offer.signature:
            (self._folder / SIGNATURE).write_bytes(self._offer.signature)
        (self._folder / OFFER).write_bytes(msgspec.msgpack.encode(self._offer))
        return manifest

    def _known(self) -> tuple[Known, dict[str, list[Path]]]:
        """Chunks by their hashes, and whole files by theirs, in other bundles and in other interrupted transfers."""
        known, whole = Known(), defaultdict[str, list[Path]](list)
        for folder in (*self._store.incoming.iterdir(), *self._store.bundles.iterdir()):
            if folder == self._folder:
                continue
            try:
                other = msgspec.msgpack.decode((folder / OFFER).read_bytes(), type=Offer)
                manifest = read_manifest(folder)
            except (OSError, msgspec.DecodeError, BundleError):
                continue  # cut off while it was begun
            known.add(folder, other.chunks)
            for name, entry in manifest.files.items():
                if folder.parent == self._store.bundles and (folder / name).is_file():
                    whole[entry.sha256].append(folder / name)
        return known, whole

    def _fill(self, path: Path, name: str, size: int, known: Known) -> Iterator[int]:
        """Makes a file of the right size, takes its chunks from elsewhere, and yields those that it has not."""
        path.parent.mkdir(parents=True, exist_ok=True)
        resumed = path.exists() and path.stat().st_size == size
        if not resumed:
            with path.open("wb") as file:
                if size:
                    os.posix_fallocate(file.fileno(), 0, size)
        for index, wanted in enumerate(self._offer.chunks[name]):
            if resumed and digest(read_chunk(path, index)) == wanted:
                continue
            if (data := known.read(wanted)) is None:
                yield index
            else:
                _write_chunk(path, index, data)

    def _accept(self, bundle: Bundle, settings: BoardSettings, say: Say) -> Measured | None:
        if ACCEPTANCE not in bundle.manifest.files:
            return None
        say("running the acceptance check")
        command = [sys.executable, "-m", "edge_sdk.deploy.acceptance", str(bundle.path)]
        if settings.step_budget_ms is not None:
            command.append(str(settings.step_budget_ms))
        said = _run(command, settings.acceptance_timeout_s, "The acceptance check")
        return msgspec.json.decode(said.splitlines()[-1], type=Measured)

    @contextmanager
    def _undone_if_full(self) -> Iterator[None]:
        """Around writes: a full disk is a refusal that leaves nothing behind."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            shutil.rmtree(self._folder, ignore_errors=True)
            free = shutil.disk_usage(self._store.folder).free
            todo = "Make room on the board; what it runs is as it was."
            raise DeployError(
                explain("The board's disk", expected="room for the bundle", found=f"{free:,} bytes free", todo=todo)
            ) from None


def _write_chunk(path: Path, index: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(index * CHUNK_BYTES)
        file.write(data)


def _decode(manifest: bytes) -> Manifest:
    try:
        return msgspec.json.decode(manifest, type=Manifest)
    except msgspec.DecodeError as error:
        todo = "Use the Edge SDK version that this board has, or update the board's."
        raise BundleError(explain(MANIFEST, expected="a valid manifest", found=error, todo=todo)) from None


def _run(command: list[str], timeout_s: float, what: str) -> str:
    """What a command prints. Raises DeployError with what it says on failure."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeployError(explain(what, expected="success", found=error, todo="Run it on the board.")) from None
    if done.returncode:
        reason = (done.stderr or done.stdout).strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise DeployError(
            reason[0]
            if ": expected " in reason[0]
            else explain(what, expected="success", found=reason[0], todo="Run it on the board.")
        )
    return done.stdout
