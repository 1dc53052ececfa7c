"""Conversations that a node keeps by name: used, reset, forked, saved and restored. No ROS in it."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_sdk.errors import BusyError, EdgeError, explain
from edge_sdk.language import LanguageModel
from edge_sdk.session import Session

FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
"""A name without a folder, so that who calls a service cannot write anywhere."""


class SessionError(EdgeError):
    """A session is unknown, or its file may not be written."""


class _Kept:
    def __init__(self, session: Session) -> None:
        self.session, self.lock = session, threading.Lock()


class Sessions:
    """Sessions of one model by name; each is used by one caller at a time."""

    def __init__(self, model: LanguageModel, folder: Path | None, most: int) -> None:
        """``folder``: where they are saved; None is nowhere. ``most``: how many are kept."""
        self._model, self._folder, self._most = model, folder, most
        self._kept: dict[str, _Kept] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    @contextmanager
    def use(self, name: str, priority: int) -> Iterator[Session]:
        """The session of a name, made where there is none; no name is a conversation of its own.

        Raises BusyError while somebody else uses it, and SessionError where no more may be made.
        """
        if not name:
            with self._model.session(priority=priority) as session:
                yield session
            return
        with self._lock:
            kept = self._kept.get(name)
            if kept is None:
                kept = self._add(name, self._model.session(priority=priority))
        with self._exclusive(name, kept):
            yield kept.session

    def reset(self, name: str) -> None:
        """Forgets what was said. Raises as :meth:`close`."""
        with self._found(name) as kept:
            kept.session.close()
            kept.session = self._model.session(priority=kept.session.priority)

    def close(self, name: str) -> None:
        """Frees a session; the name is unknown then. Raises SessionError for an unknown name, BusyError while used."""
        with self._found(name) as kept, self._lock:
            kept.session.close()
            del self._kept[name]

    def fork(self, name: str, other: str) -> None:
        """Makes another session that goes on from there. Raises as :meth:`close`, and where the other exists."""
        with self._found(name) as kept:
            self._place(other, kept.session.fork())

    def save(self, name: str, file: str) -> None:
        """Writes a session into the folder. Raises as :meth:`close`, and OSError."""
        path = self._path(file)
        with self._found(name) as kept:
            kept.session.save(path)

    def restore(self, name: str, file: str) -> None:
        """Makes a session from a file in the folder. Raises StateError for a file that is not this model's."""
        self._place(name, self._model.restore(self._path(file)))

    def close_all(self) -> None:
        """Frees them all, once nobody uses them any more."""
        with self._lock:
            kept, self._kept = list(self._kept.values()), {}
        for each in kept:
            with each.lock:
                each.session.close()

    def _place(self, name: str, session: Session) -> None:
        """Keeps a new session; closes it where that may not be."""
        try:
            with self._lock:
                self._add(name, session)
        except EdgeError:
            session.close()
            raise

    def _add(self, name: str, session: Session) -> _Kept:
        found = f"{name!r}, which exists" if name in self._kept else f"{len(self._kept)} sessions"
        if not name or name in self._kept or len(self._kept) >= self._most:
            expected = f"a new name, of at most {self._most}"
            raise SessionError(explain("The session", expected=expected, found=found, todo="Close one."))
        self._kept[name] = _Kept(session)
        return self._kept[name]

    @contextmanager
    def _found(self, name: str) -> Iterator[_Kept]:
        with self._lock:
            kept = self._kept.get(name)
        if kept is None:
            known = ", ".join(sorted(self._kept)) or "none"
            raise SessionError(
                explain(f"The session {name!r}", expected="one that exists", found=known, todo="Make it.")
            )
        with self._exclusive(name, kept):
            yield kept

    @contextmanager
    def _exclusive(self, name: str, kept: _Kept) -> Iterator[None]:
        if not kept.lock.acquire(blocking=False):
            raise BusyError(
                explain(f"The session {name!r}", expected="nobody using it", found="an answer", todo="Try again later.")
            )
        try:
            yield
        finally:
            kept.lock.release()

    def _path(self, file: str) -> Path:
        if self._folder is None or not FILE_NAME.fullmatch(file):
            expected = "a file's name, and the parameter session_folder"
            found = f"{file!r}, and {self._folder or 'no folder'}"
            raise SessionError(explain("Saving and restoring", expected=expected, found=found, todo="Correct it."))
        return self._folder / file
