"""Frames of an episode out of a video or a picture, and into a video, with PyAV."""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from edge_export.lerobot.checks import import_av, refuse, refused, require

FORMATS = {1: "gray", 3: "rgb24"}
CODEC, PIXELS = "h264", "yuv420p"
ENCODER = "libx264"
OPTIONS = {"g": "2", "crf": "18"}
"""Every second frame is whole, as LeRobot has it, so that an episode in the middle is found quickly."""


def decode_frames(path: Path, times_s: np.ndarray, shape: tuple[int, int, int], fps: float) -> np.ndarray:
    """The frames at rising times (steps,) of a video: (steps, height, width, channels) uint8.

    Decodes from the key frame before the first. Raises ConfigError where no frame lies within half a frame's time, or
    where frames have another size.
    """
    av = import_av()
    frames = np.empty((len(times_s), *shape), dtype=np.uint8)
    tolerance_s, done = 0.5 / fps, 0
    with refused(path, "a video", av.FFmpegError), av.open(str(path)) as container:
        for time_s, frame in _from(container, float(times_s[0]) - tolerance_s):
            while done < len(frames) and abs(times_s[done] - time_s) <= tolerance_s:
                frames[done] = _pixels(frame, shape, path)
                done += 1
            if done == len(frames):
                break
    if done < len(frames):
        refuse(path, f"a frame at {times_s[done]:.4f} s", "none")
    return frames


def _from(container: Any, start_s: float) -> Iterator[tuple[float, Any]]:
    """Times and frames from the key frame before a time on."""
    stream = container.streams.video[0]
    container.seek(max(0, int(start_s / stream.time_base)), stream=stream)
    for frame in container.decode(stream):
        yield float(frame.time or 0.0), frame


def decode_picture(data: bytes, shape: tuple[int, int, int], where: Path) -> np.ndarray:
    """A PNG or JPEG as (height, width, channels) uint8. Raises ConfigError for anything else."""
    av = import_av()
    with refused(where, "pictures", av.FFmpegError, IndexError, StopIteration), av.open(io.BytesIO(data)) as container:
        return _pixels(next(container.decode(video=0)), shape, where)
    raise AssertionError


def _pixels(frame: Any, shape: tuple[int, int, int], where: Path) -> np.ndarray:
    found = (frame.height, frame.width)
    require(found == shape[:2], where, f"frames of {shape[0]} x {shape[1]}", f"{found[0]} x {found[1]}")
    pixels: np.ndarray = frame.to_ndarray(format=FORMATS[shape[2]]).reshape(shape)
    return pixels


def encode_frames(path: Path, frames: np.ndarray, fps: float) -> None:
    """Writes (steps, height, width, channels) uint8 as H.264, which loses a little.

    Raises ConfigError for odd heights and widths, whose colours H.264 cannot halve.
    """
    av = import_av()
    height, width, channels = frames.shape[1:]
    require(height % 2 == width % 2 == 0, path, "an even height and width", f"{height} x {width}")
    rate = Fraction(fps).limit_denominator(10**6)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(ENCODER, rate=rate, options=OPTIONS)
        stream.width, stream.height, stream.pix_fmt = width, height, PIXELS
        for pixels in frames:
            plane = pixels if channels == 3 else pixels[..., 0]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(plane), format=FORMATS[channels])
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
