"""Frames of a camera, stream or file: only the newest one is kept, and each knows how old it is.

What sees the world late should see it as it is now: a queue of frames would make every later decision older by its
length. So a thread reads as fast as the source gives, and what nobody took in time is counted and forgotten.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Union

import numpy as np

from edge_sdk.backoff import Backoff
from edge_sdk.errors import CameraError, explain

Source = Union[int, str, Path, Iterable[np.ndarray]]
"""A device's index or path, a file, a URL such as ``rtsp://``, or RGB images (height, width, 3) uint8 themselves."""

FIRST_DELAY_S, LONGEST_DELAY_S = 0.1, 5.0
"""Between attempts to open a lost source again: the first, and the longest."""

log = logging.getLogger("edge_sdk")


@dataclass(frozen=True, eq=False)
class Frame:
    """An image, when it came, and its place among all that the source gave."""

    image: np.ndarray
    """RGB (height, width, 3) uint8."""
    sequence: int
    """From 0, in the order of reading; forgotten frames are counted too."""
    time_ns: int
    """``time.monotonic_ns()`` at which it was read; how long camera and driver held it before, they do not say."""

    @property
    def age_ms(self) -> float:
        """Time since it was read."""
        return (time.monotonic_ns() - self.time_ns) / 1e6


class _Reader(Protocol):
    """Where a FrameSource's thread gets images from."""

    live: bool
    """Whether it goes on for ever, so that its end is a loss and it is to be opened again."""
    rate_hz: float
    """Of images, where they are there at once and have to wait for their time; else 0."""

    def open(self) -> bool:
        """Whether it could be opened, again after a loss."""

    def read(self) -> np.ndarray | None:
        """The next image, RGB (height, width, 3) uint8; None at the end or when the source is lost."""

    def close(self) -> None:
        """Lets go of it."""


class FrameSource:
    """Reads a source in a thread of its own. Also a context manager, and an iterator over frames not seen yet.

    Frames are handed to whoever asks first; :meth:`close` may come from any thread.
    """

    def __init__(self, source: Source, *, paced: bool = True, timeout_ms: float = 5000) -> None:
        """Opens the source. Raises CameraError where that fails, or opencv is not installed.

        ``paced`` plays a file at its own rate, as a camera would have given it; without it, every frame of a file or
        of given images waits until it is taken, and none is forgotten. ``timeout_ms``: how long opening a URL and
        waiting for its next frame may take before it counts as lost. A device or URL that is lost later is opened
        again until it is back; a URL is taken for a stream, whose end is a loss.
        """
        self.name = "the given images" if _are_images(source) else str(source)
        self._reader = _reader(source, timeout_ms)
        self._timeout_s = timeout_ms / 1e3
        self._every = not paced and not self._reader.live
        self._news = threading.Condition()
        """Guards what follows."""
        self._frame: Frame | None = None
        self._taken = True
        """Whether somebody has seen the frame."""
        self._ended = False
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self.dropped = 0
        """Frames that were forgotten unseen."""
        self.reconnects = 0
        """How often the source was lost and found again."""
        if not self._reader.open():
            raise CameraError(
                explain(self.name, expected="a source that opens", found="none", todo="Check its name and the cable.")
            )
        self._thread = threading.Thread(target=self._run, name="edge-camera", daemon=True)
        self._thread.start()
        # so that at Python's exit, too, no thread is left within OpenCV
        weakref.finalize(self, _end, self._stop, self._news, self._thread, 2 * self._timeout_s)

    def latest(self) -> Frame | None:
        """The newest frame, seen or not; None before the first."""
        with self._news:
            self._taken = True
            self._news.notify_all()
            return self._frame

    def next(self, timeout_ms: float | None = None) -> Frame:
        """The newest frame that nobody has seen, once there is one.

        Raises CameraError if none comes in time, at a file's end, and after :meth:`close`.
        """
        with self._news:
            self._news.wait_for(lambda: not self._taken or self.ended, None if timeout_ms is None else timeout_ms / 1e3)
            if not self._taken and not self._stop.is_set():
                assert self._frame is not None
                self._taken = True
                self._news.notify_all()
                return self._frame
            if self._error is not None:
                raise self._error
            found = "its end" if self.ended else f"none within {timeout_ms:g} ms"
            raise CameraError(explain(self.name, expected="a frame", found=found, todo="Look at the camera."))

    def __iter__(self) -> Iterator[Frame]:
        """Frames until the end or :meth:`close`; see :meth:`next`."""
        while True:
            try:
                yield self.next()
            except CameraError:
                if self._error is None:
                    return
                raise

    @property
    def ended(self) -> bool:
        """Whether no further frame will be read."""
        return self._ended or self._stop.is_set()

    def close(self) -> None:
        """Lets go of the source and wakes up who waits for a frame."""
        _end(self._stop, self._news, self._thread, 2 * self._timeout_s)
        if self._thread.is_alive():
            log.warning("%s is still being read from; its thread ends when that returns", self.name)

    def __enter__(self) -> FrameSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        try:
            self._read_all()
        except Exception as error:  # of an iterator, which may raise anything: for who waits for its frames
            self._error = error
        finally:
            self._reader.close()
            with self._news:
                self._ended = True
                self._news.notify_all()

    def _read_all(self) -> None:
        started, reader = time.monotonic(), self._reader
        for sequence in itertools.count():
            image = reader.read()
            while image is None:
                if not reader.live or not self._reopen():
                    return
                image = reader.read()
            if reader.rate_hz and not self._every:
                self._stop.wait(started + sequence / reader.rate_hz - time.monotonic())
            if not self._hand_out(Frame(image, sequence, time.monotonic_ns())):
                return

    def _hand_out(self, frame: Frame) -> bool:
        """Puts the frame where the last one was; False where nobody wants it any more."""
        with self._news:
            if self._every:
                self._news.wait_for(lambda: self._taken or self._stop.is_set())
            if self._stop.is_set():
                return False
            self.dropped += not self._taken
            self._frame, self._taken = frame, False
            self._news.notify_all()
            return True

    def _reopen(self) -> bool:
        """Opens a lost source again, however long that takes; False if it is closed meanwhile."""
        log.warning("%s is lost: it will be opened again", self.name)
        backoff = Backoff(FIRST_DELAY_S, LONGEST_DELAY_S)
        while not backoff.wait(self._stop):
            if self._reader.open():
                self.reconnects += 1
                log.info("%s is back", self.name)
                return True
        return False


def _end(stop: threading.Event, news: threading.Condition, thread: threading.Thread, wait_s: float) -> None:
    """Ends the thread of a source, or waits so long for it in vain."""
    stop.set()
    with news:
        news.notify_all()
    if threading.current_thread() is not thread:
        thread.join(wait_s)


class _Images:
    """Images that somebody else makes."""

    live, rate_hz = False, 0.0

    def __init__(self, images: Iterable[np.ndarray]) -> None:
        self._images = iter(images)

    def open(self) -> bool:
        return True

    def read(self) -> np.ndarray | None:
        return next(self._images, None)

    def close(self) -> None:
        """They belong to who gave them."""


class _Capture:
    """OpenCV's reader of devices, streams and files."""

    def __init__(self, source: int | str, *, live: bool, timeout_ms: float) -> None:
        self._cv2, self._source, self._timeout_ms, self.live = import_cv2(), source, timeout_ms, live
        self._capture: Any = None
        self.rate_hz = 0.0

    def open(self) -> bool:
        cv2 = self._cv2
        self.close()
        if isinstance(self._source, str) and "://" in self._source:
            limits = [
                cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
                self._timeout_ms,
                cv2.CAP_PROP_READ_TIMEOUT_MSEC,
                self._timeout_ms,
            ]
            self._capture = cv2.VideoCapture(self._source, cv2.CAP_FFMPEG, list(map(int, limits)))
        else:
            self._capture = cv2.VideoCapture(self._source)
            if self.live:
                self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # a driver's queue would make every frame older
        if not self.live:
            rate_hz = self._capture.get(cv2.CAP_PROP_FPS)
            self.rate_hz = rate_hz if rate_hz > 0 else 0.0
        return bool(self._capture.isOpened())

    def read(self) -> np.ndarray | None:
        done, image = self._capture.read()
        return self._cv2.cvtColor(image, self._cv2.COLOR_BGR2RGB) if done else None

    def close(self) -> None:
        if self._capture is not None:
            self._capture.release()


def _are_images(source: Source) -> bool:
    return not isinstance(source, (int, str, Path))


def _reader(source: Source, timeout_ms: float) -> _Reader:
    if isinstance(source, int):
        return _Capture(source, live=True, timeout_ms=timeout_ms)
    if isinstance(source, (str, Path)):
        return _Capture(str(source), live=not Path(source).is_file(), timeout_ms=timeout_ms)
    return _Images(source)


def import_cv2() -> Any:
    """OpenCV, which only images and cameras need. Raises CameraError where it is not installed."""
    try:
        import cv2
    except ImportError as error:
        raise CameraError(
            explain("Images and cameras", expected="opencv", found=error, todo="pip install 'edge-sdk[vision]'")
        ) from None
    return cv2
