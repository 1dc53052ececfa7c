"""Frame sources: files that OpenCV wrote, streams from servers on this machine, and images given one by one."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2", reason="needs opencv: pip install 'edge-sdk[vision]'")

from edge_sdk.camera import FrameSource
from edge_sdk.errors import CameraError
from streams import HEIGHT, NUMBERS, RATE_HZ, WIDTH, number_of, picture, stream_server, write_video


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "video.avi", 20)


def test_a_file_that_is_not_paced_gives_every_frame_in_order_and_in_rgb(video: Path) -> None:
    with FrameSource(video, paced=False) as source:
        frames = []
        for frame in source:
            time.sleep(0.005)  # slower than the file is read
            frames.append(frame)
    assert [number_of(frame.image) for frame in frames] == [frame.sequence for frame in frames] == list(range(20))
    assert frames[0].image.shape == (HEIGHT, WIDTH, 3)
    assert frames[0].image.dtype == np.uint8
    assert frames[19].image[..., 0].mean() > 3 * frames[19].image[..., 2].mean()  # the red channel comes first
    assert source.dropped == 0
    assert source.ended


def test_a_paced_file_plays_at_its_rate_and_forgets_what_is_not_taken(video: Path) -> None:
    with FrameSource(video) as source:
        first = source.next(timeout_ms=5000)
        time.sleep(8 / RATE_HZ)
        second = source.next(timeout_ms=5000)
        assert second.sequence - first.sequence >= 7
        assert source.dropped >= second.sequence - first.sequence - 1
        rest = list(source)
    assert rest[-1].sequence == 19
    assert rest[-1].time_ns - first.time_ns >= (19 - first.sequence - 0.5) / RATE_HZ * 1e9
    assert source.dropped + 2 + len(rest) == 20


def test_the_newest_frame_says_how_old_it_is() -> None:
    released = threading.Event()

    def images() -> Iterator[np.ndarray]:
        yield picture(1)
        yield picture(2)
        released.wait(10)

    with FrameSource(images()) as source:
        while (frame := source.latest()) is None or frame.sequence < 1:
            time.sleep(0.001)
        assert number_of(frame.image) == 2
        before = frame.age_ms
        time.sleep(0.05)
        assert frame.age_ms >= before + 50
        assert source.latest() is frame  # seen, and still the newest
        with pytest.raises(CameraError, match="none within 20 ms"):
            source.next(timeout_ms=20)
        released.set()


def test_the_end_is_told_apart_from_a_failure(video: Path) -> None:
    def images() -> Iterator[np.ndarray]:
        yield picture(1)
        raise OSError("the cable")

    with FrameSource(images(), paced=False) as source:
        assert number_of(source.next().image) == 1
        with pytest.raises(OSError, match="the cable"):
            source.next()
    with FrameSource([picture(1)], paced=False) as source:
        source.next()
        with pytest.raises(CameraError, match="its end"):
            source.next()


def test_what_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.avi").write_text("no video")
    for source in (tmp_path / "missing.avi", tmp_path / "text.avi", 63, "rtsp://127.0.0.1:9/none"):
        with pytest.raises(CameraError, match="a source that opens"):
            FrameSource(source, timeout_ms=2000)


def test_a_source_that_nobody_closed_is_let_go_of_before_python_ends(video: Path) -> None:
    script = """
import atexit, sys
atexit.register(lambda: print("still read" if source._thread.is_alive() else "let go of"))  # the last of all to run
from edge_sdk.camera import FrameSource
source = FrameSource(sys.argv[1])
source.next()
"""
    command = [sys.executable, "-c", script, str(video)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (0, "let go of\n"), result.stderr


def test_close_wakes_up_who_waits() -> None:
    released = threading.Event()
    source = FrameSource(iter(lambda: (released.wait(10), picture(0))[1], None))
    errors: list[CameraError] = []

    def wait() -> None:
        try:
            while True:
                source.next()
        except CameraError as error:
            errors.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    closing = threading.Thread(target=source.close)
    closing.start()
    waiting.join(5)
    assert not waiting.is_alive()
    assert "its end" in str(errors[0])
    released.set()
    closing.join(5)
    assert not closing.is_alive()
    source.close()  # again does no harm


def silence(source: FrameSource) -> str:
    """What a source says once it gives no more frames."""
    try:
        while True:
            source.next(timeout_ms=1500)
    except CameraError as error:
        return str(error)


@pytest.mark.parametrize("rtsp", [False, True], ids=["tcp", "rtsp"])
def test_a_stream_that_breaks_is_opened_again(rtsp: bool, tmp_path: Path) -> None:
    with stream_server(tmp_path, rtsp=rtsp) as server, FrameSource(server.url, timeout_ms=5000) as source:
        frames = [source.next(timeout_ms=10_000) for _ in range(5)]
        assert [frame.sequence for frame in frames] == sorted({frame.sequence for frame in frames})
        assert frames[0].image.shape == (HEIGHT, WIDTH, 3)
        numbers = [number_of(frame.image) - frame.sequence for frame in frames]
        assert {number % NUMBERS for number in numbers} == {numbers[0] % NUMBERS}  # no frame that was read is uncounted
        port = server.port
        server.stop()
        assert "none within" in silence(source)
        assert not source.ended
        server.listen(port)
        back = source.next(timeout_ms=20_000)
        assert back.sequence > frames[-1].sequence
        assert source.reconnects == 1
