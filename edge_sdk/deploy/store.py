"""A board's store: two slots that name bundles, and one record whose replacement is the switch between them.

    record.json    what is in slots a and b, and which is active: written aside, fsynced, renamed
    bundles/ID/    bundles, named by the hash of their manifest; what no slot names is deleted
    incoming/ID/   a bundle that is being received
    board.json     trusted_keys: what the board asks of a bundle; may lie in a folder that others own
    figures/       how what runs on the board is doing (edge_sdk.figures)

A power cut at any moment leaves the old record or the new one, and both name whole bundles: a bundle gets its name in
``bundles`` after it was fsynced, and the record names it after that.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from edge_sdk.bundle import Bundle
from edge_sdk.deploy.record import BoardSettings, Record, Slot, SlotName
from edge_sdk.deploy.signing import PublicKey, read_keys
from edge_sdk.errors import BundleError, BusyError, DeployError, explain
from edge_sdk.files import new_file, remove_abandoned, sync

RECORD = "record.json"
SETTINGS = "board.json"
TRUSTED_KEYS = "trusted_keys"
FIGURES = "figures"


class Store:
    """One store; its folders are made where they are missing."""

    def __init__(self, folder: Path, settings_folder: Path | None = None) -> None:
        """``settings_folder``: where board.json and trusted_keys are, if not in the store."""
        self.folder, self.settings_folder = folder, settings_folder or folder
        self.bundles, self.incoming = folder / "bundles", folder / "incoming"
        for path in (self.bundles, self.incoming):
            path.mkdir(parents=True, exist_ok=True)
        sync(folder)

    def settings(self) -> BoardSettings:
        """What this board asks of a bundle. Raises DeployError."""
        path = self.settings_folder / SETTINGS
        try:
            return _settings(path.read_bytes(), str(path))
        except FileNotFoundError:
            return BoardSettings()

    @property
    def figures(self) -> Path:
        """Where control loops and servers say how they are doing. Raises DeployError."""
        return Path(named).expanduser() if (named := self.settings().figures) else self.folder / FIGURES

    def trusted_keys(self) -> list[PublicKey]:
        """Whose signatures count. Raises DeployError."""
        return read_keys(self.settings_folder / TRUSTED_KEYS)

    def configure(self, settings: bytes | None, keys: bytes | None) -> None:
        """Replaces board.json and the trusted keys, where given. Raises DeployError for what cannot be read."""
        for name, content in ((SETTINGS, settings), (TRUSTED_KEYS, keys)):
            if content is not None:
                with new_file(self.settings_folder / name) as temporary:
                    temporary.write_bytes(content)
                    if name == TRUSTED_KEYS:
                        read_keys(temporary)
                    else:
                        _settings(content, name)

    def read(self) -> Record:
        """What the board remembers. Raises DeployError."""
        path = self.folder / RECORD
        try:
            return msgspec.json.decode(path.read_bytes(), type=Record)
        except FileNotFoundError:
            return Record()
        except msgspec.DecodeError as error:
            todo = "Move the store aside and deploy again."
            raise DeployError(explain(str(path), expected="a store's record", found=error, todo=todo)) from None

    def path_of(self, slot: Slot) -> Path:
        """The folder of a slot's bundle."""
        return self.bundles / slot.bundle_id

    def active_bundle(self) -> Path:
        """The folder of the bundle that is to run. Raises DeployError."""
        if (slot := self.read().running) is None:
            todo = "Deploy a bundle: `edge-sdk deploy BUNDLE user@host`."
            raise DeployError(explain(str(self.folder), expected="an active slot", found="none", todo=todo))
        return self.path_of(slot)

    @contextmanager
    def installing(self) -> Iterator[None]:
        """One installation at a time. Raises BusyError where there is another."""
        with (self.folder / "install.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                todo = "Wait until it ends."
                raise BusyError(
                    explain(str(self.folder), expected="no other deployment", found="one", todo=todo)
                ) from None
            yield

    def activate(self, slot: Slot) -> SlotName:
        """Switches to a bundle that is whole and accepted, in the slot that is not active; returns which."""
        with self._changing() as record:
            running = record.running
            same = running is not None and running.bundle_id == slot.bundle_id
            name: SlotName = record.active if same and record.active else record.spare
            self._write(record.put(name, slot).switch(name))
        self._collect()
        return name

    def roll_back(self, *, force: bool = False) -> Slot:
        """Switches to the other slot. Raises DeployError where it is empty, damaged, or failed before unless forced."""
        with self._changing() as record:
            slot = record.slots.get(record.spare)
            if slot is None:
                todo = "Deploy the bundle that is wanted."
                raise DeployError(explain("The other slot", expected="a bundle", found="none", todo=todo))
            if slot.failed and not force:
                todo = "Deploy another bundle, or insist with --force."
                raise DeployError(explain("The other slot", expected="no failure", found=slot.failed, todo=todo))
            try:
                Bundle.open(self.path_of(slot))
            except BundleError as error:
                todo = "Deploy the bundle that is wanted."
                raise DeployError(
                    explain("The other slot", expected="a whole bundle", found=error, todo=todo)
                ) from None
            slot = msgspec.structs.replace(slot, failed="", starts=0)
            self._write(record.put(record.spare, slot).switch(record.spare))
            return slot

    def begin_start(self) -> Slot:
        """The service starts: what it is to run. Raises DeployError where nothing was deployed.

        A bundle that was started ``max_starts`` times since the switch and was never healthy is given up for the one
        in the other slot, if that one is there and was not given up before.
        """
        most = self.settings().max_starts
        with self._changing() as record:
            slot, name = record.running, record.active
            if slot is None or name is None:
                self.active_bundle()  # says what is missing
                raise AssertionError
            if slot.healthy:
                return slot
            other = record.slots.get(record.spare)
            if slot.starts >= most and other is not None and not other.failed and self._is_there(other):
                failed = msgspec.structs.replace(slot, failed=f"{slot.starts} starts without a healthy service")
                self._write(record.put(name, failed).switch(record.spare))
                return other
            slot = msgspec.structs.replace(slot, starts=slot.starts + 1)
            self._write(record.put(name, slot))
            return slot

    def confirm(self, bundle_id: str) -> None:
        """The service runs this bundle and is well."""
        with self._changing() as record:
            slot, name = record.running, record.active
            if name is not None and slot is not None and slot.bundle_id == bundle_id and not slot.healthy:
                self._write(record.put(name, msgspec.structs.replace(slot, healthy=True, failed="", starts=0)))

    def _is_there(self, slot: Slot) -> bool:
        """Whether a slot's bundle has all its files, by their names and sizes."""
        try:
            Bundle.open(self.path_of(slot), verify_hashes=False)
        except BundleError:
            return False
        return True

    @contextmanager
    def _changing(self) -> Iterator[Record]:
        """The record, which nobody else changes meanwhile."""
        with (self.folder / "record.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield self.read()

    def _write(self, record: Record) -> None:
        with new_file(self.folder / RECORD) as temporary:
            temporary.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")

    def _collect(self) -> None:
        """Deletes bundles that no slot names and what else was left; files that a service still maps live on."""
        named = {slot.bundle_id for slot in self.read().slots.values()}
        left = [path for path in self.bundles.iterdir() if path.name not in named]
        for path in [*left, *self.incoming.iterdir()]:
            shutil.rmtree(path, ignore_errors=True)
        remove_abandoned(self.folder)


def _settings(content: bytes, what: str) -> BoardSettings:
    try:
        return msgspec.json.decode(content, type=BoardSettings)
    except msgspec.DecodeError as error:
        raise DeployError(explain(what, expected="settings", found=error, todo="Correct them.")) from None
