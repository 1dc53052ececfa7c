"""From pictures to what a vision encoder reads, as the bundle says (``ImageSpec``)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from edge_sdk.camera import Frame, import_cv2
from edge_sdk.errors import ImageError, explain
from edge_sdk.vision_spec import ImageSpec

MOST_PIXELS = 50_000_000
"""Of a picture, so that a small file cannot ask for all memory."""

BLOCK = 32
"""Rows that are resampled at once: they read neighbouring rows only, and most of the weights are zeros."""

PNG_START = b"\x89PNG\r\n\x1a\n"


def as_picture(image: object, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """A picture, RGB (height, width, 3) uint8, of a file's path, an encoded file's bytes, a Frame or an array.

    Raises ImageError for anything else, and for files that are not JPEG or PNG.
    """
    if isinstance(image, Frame):
        return image.image
    if isinstance(image, (str, Path)):
        try:
            return decode_picture(Path(image).read_bytes(), most_pixels)
        except OSError as error:
            raise ImageError(
                explain(str(image), expected="a readable file", found=error.strerror, todo="Check it.")
            ) from None
    if isinstance(image, bytes):
        return decode_picture(image, most_pixels)
    if (
        isinstance(image, np.ndarray)
        and image.dtype == np.uint8
        and image.ndim == 3
        and image.shape[2] == 3
        and image.size
    ):
        return image
    found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    expected = "a path, a Frame, or RGB (height, width, 3) uint8"
    raise ImageError(explain("An image", expected=expected, found=found, todo="Convert it."))


def decode_picture(content: bytes, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """A JPEG or PNG file's picture, RGB (height, width, 3) uint8, turned as its EXIF says.

    Raises ImageError for what is neither, damaged or too large; its size is known before anything is decoded.
    """
    pixels = _pixels(content)
    if pixels is None or not 0 < pixels <= most_pixels:
        found = "something else" if pixels is None else f"{pixels} pixels"
        expected = f"a JPEG or PNG file of at most {most_pixels} pixels"
        raise ImageError(explain("An image", expected=expected, found=found, todo="Convert it."))
    cv2 = import_cv2()
    try:
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise ImageError(explain("An image", expected="a whole file", found=error, todo="Send it again.")) from None
    if picture is None:
        raise ImageError(explain("An image", expected="a whole file", found="a damaged one", todo="Send it again."))
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))


def _pixels(content: bytes) -> int | None:
    """Height times width of a JPEG or PNG file by its header; None for anything else."""
    if content.startswith(PNG_START) and len(content) >= 24:
        width, height = struct.unpack(">II", content[16:24])
        return int(width * height)
    if not content.startswith(b"\xff\xd8"):
        return None
    at = 2
    while at + 9 <= len(content) and content[at] == 0xFF:  # markers with their lengths, ITU-T T.81 section B.1.1.4
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            height, width = struct.unpack(">HH", content[at + 5 : at + 9])
            return int(width * height)
        at += 1 if marker == 0xFF else 2 + length
    return None


def pixel_values(picture: np.ndarray, spec: ImageSpec) -> np.ndarray:
    """What the encoder reads, (3, height, width) float32, of a picture, RGB (height, width, 3) uint8."""
    if spec.fit == "letterbox":
        picture = _padded(picture, spec)
    if spec.fit == "crop":
        assert spec.shortest_edge is not None
        edge, short = spec.shortest_edge, min(picture.shape[:2])
        height, width = (edge if size == short else int(edge * size / short) for size in picture.shape[:2])
        picture = resized(picture, height, width, spec.resample)
        top, left = (height - spec.height) // 2, (width - spec.width) // 2
        picture = picture[top : top + spec.height, left : left + spec.width]
    else:
        picture = resized(picture, spec.height, spec.width, spec.resample)
    scale = np.float32(spec.scale) / np.array(spec.std, np.float32)
    shift = np.array(spec.mean, np.float32) / np.array(spec.std, np.float32)
    return np.ascontiguousarray((picture * scale - shift).transpose(2, 0, 1), dtype=np.float32)


def _padded(picture: np.ndarray, spec: ImageSpec) -> np.ndarray:
    """The picture in the middle of a background that has the wanted shape."""
    height, width = picture.shape[:2]
    tall = max(height, round(width * spec.height / spec.width))
    wide = max(width, round(height * spec.width / spec.height))
    whole = np.empty((tall, wide, 3), np.uint8)
    whole[...] = spec.background
    top, left = (tall - height) // 2, (wide - width) // 2
    whole[top : top + height, left : left + width] = picture
    return whole


def resized(picture: np.ndarray, height: int, width: int, kind: str) -> np.ndarray:
    """A picture (old height, old width, 3) uint8 in another size, as Pillow makes it, by which encoders were trained.

    Unlike OpenCV's, Pillow's filters grow with the reduction, so that what is between two pixels is not skipped; it
    rounds to bytes after the rows are done and again after the columns.
    """
    turned = _resampled(picture.transpose(1, 0, 2), width, kind)
    return _resampled(turned.transpose(1, 0, 2), height, kind)


def _resampled(picture: np.ndarray, target: int, kind: str) -> np.ndarray:
    """The first axis of (size, other, 3) uint8 in another size."""
    size = len(picture)
    if size == target:
        return picture
    weights = _weights(size, target, kind)
    new = np.empty((target, *picture.shape[1:]), np.uint8)
    for start in range(0, target, BLOCK):
        part = weights[start : start + BLOCK]
        (read,) = np.nonzero(part.any(axis=0))
        rows = slice(read[0], read[-1] + 1)
        sums = part[:, rows] @ picture[rows].reshape(rows.stop - rows.start, -1).astype(np.float32)
        new[start : start + BLOCK] = np.clip(np.floor(sums + 0.5), 0, 255).reshape(-1, *picture.shape[1:])
    return new


@lru_cache(maxsize=16)
def _weights(size: int, target: int, kind: str) -> np.ndarray:
    """(target, size) float32: how much every old row has in a new one."""
    reach, curve = FILTERS[kind]
    stretch = max(size / target, 1.0)
    centres = (np.arange(target)[:, None] + 0.5) * (size / target)
    rows = np.arange(size)[None]
    within = (rows >= np.floor(centres - reach * stretch + 0.5)) & (rows < np.floor(centres + reach * stretch + 0.5))
    weights = np.where(within, curve(np.abs((rows + 0.5 - centres) / stretch)), 0.0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(1 - x, 0))


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys 1981, Cubic convolution interpolation for digital image processing, with a = -0.5."""
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


FILTERS: dict[str, tuple[float, Callable[[np.ndarray], np.ndarray]]] = {
    "bilinear": (1.0, _triangle),
    "bicubic": (2.0, _cubic),
}
"""By name: how far a filter reaches, and its curve over the distance."""
