"""Pictures to pixel_values: as transformers' own image processors make them; and files that are none."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

cv2 = pytest.importorskip("cv2", reason="needs opencv: pip install 'edge-sdk[vision]'")
# ruff: noqa: E402

from edge_sdk.camera import Frame
from edge_sdk.errors import ConfigError, ImageError
from edge_sdk.images import PNG_START, as_picture, decode_picture, pixel_values, resized
from edge_sdk.vision_spec import ImageSpec

CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}


def scene(height: int, width: int) -> np.ndarray:
    """Edges, slopes and noise, RGB."""
    rng = np.random.default_rng(height * width)
    rows, columns = np.mgrid[:height, :width]
    picture = np.stack([rows * 255 / height, columns * 255 / width, 127 + 120 * np.sin(columns / 3)], axis=-1)
    picture[height // 3 : height // 2, width // 4 : width // 2] = (250, 5, 120)
    return np.clip(picture + rng.normal(0, 12, picture.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(480, 640), (97, 41), (30, 20), (224, 224)])
def test_a_picture_is_resized_as_pillow_does_it(size: tuple[int, int], kind: str) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs Pillow, as the reference")
    picture = scene(*size)
    wanted = np.asarray(image.fromarray(picture).resize((224, 112), getattr(image.Resampling, kind.upper())))
    difference = np.abs(resized(picture, 112, 224, kind).astype(int) - wanted)
    assert difference.max() <= 1  # Pillow's weights are fixed-point numbers
    assert (difference > 0).mean() < 0.02


def assert_close(picture: np.ndarray, spec: ImageSpec, reference: object) -> None:
    """Equal to what a processor makes, but for single levels of brightness in a few places.

    Pillow 13 begins with the columns of a tall picture, older ones never do: overshoot at edges is cut off elsewhere.
    """
    tall = picture.shape[0] > picture.shape[1]
    expected = reference(picture, return_tensors="np")["pixel_values"][0]  # type: ignore[operator]
    found = pixel_values(picture, spec)
    assert found.shape == expected.shape == (3, spec.height, spec.width)
    assert found.dtype == np.float32
    difference = np.abs(found - expected)
    level = 1.01 / 255 / min(spec.std)
    assert difference.max() <= (8 if tall else 1) * level
    assert difference.mean() <= (0.3 if tall else 0.02) * level


@pytest.mark.parametrize("size", [(480, 640), (333, 100), (50, 60)])
def test_pictures_are_prepared_as_transformers_does_it(size: tuple[int, int]) -> None:
    pytest.importorskip("transformers", reason="needs transformers, as the reference")
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    picture = scene(*size)
    square = {"height": 56, "width": 56}
    assert_close(picture, ImageSpec(**square), SiglipImageProcessorPil(size=square))
    crop = ImageSpec(**square, fit="crop", shortest_edge=70, **CLIP)
    assert_close(picture, crop, CLIPImageProcessorPil(size={"shortest_edge": 70}, crop_size=square))
    padded = ImageSpec(**square, fit="letterbox", background=(122, 116, 104), **CLIP)
    assert_close(picture, padded, LlavaImageProcessorPil(size={"shortest_edge": 56}, crop_size=square, do_pad=True))


def test_a_letterbox_keeps_the_shape_of_things() -> None:
    spec = ImageSpec(height=40, width=80, fit="letterbox", background=(9, 9, 9), scale=1.0, mean=(0,) * 3, std=(1,) * 3)
    found = pixel_values(np.full((100, 100, 3), 200, np.uint8), spec)
    assert (found[:, :, 24:56] == 200).all()
    assert (found[:, :, :18] == 9).all()
    assert (found[:, :, 62:] == 9).all()


def test_files_frames_and_arrays_are_pictures(tmp_path: Path) -> None:
    picture = scene(30, 40)
    cv2.imwrite(str(tmp_path / "a.png"), picture[..., ::-1])
    cv2.imwrite(str(tmp_path / "a.jpg"), picture[..., ::-1])
    for given_as in (
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        (tmp_path / "a.png").read_bytes(),
        Frame(picture, 0, 0),
    ):
        assert np.array_equal(as_picture(given_as), picture)
    assert as_picture(tmp_path / "a.jpg").shape == picture.shape
    for wrong in (picture[..., 0], picture.astype(np.float32), np.zeros((0, 3, 3), np.uint8), 5, tmp_path / "none.png"):
        with pytest.raises(ImageError, match="expected"):
            as_picture(wrong)


def test_a_small_file_cannot_ask_for_all_memory() -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = PNG_START + struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    with pytest.raises(ImageError, match="3600000000 pixels"):
        decode_picture(bomb)
    done, jpeg = cv2.imencode(".jpg", scene(100, 200))
    assert done
    with pytest.raises(ImageError, match="20000 pixels"):
        decode_picture(jpeg.tobytes(), most_pixels=19_999)


JPEG, PNG = (cv2.imencode(kind, scene(16, 16))[1].tobytes() for kind in (".jpg", ".png"))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([JPEG, PNG]), st.data())
def test_damaged_files_are_refused_or_decoded_to_a_picture(content: bytes, data: st.DataObject) -> None:
    damaged = bytearray(content[: data.draw(st.integers(0, len(content)))])
    for _ in range(data.draw(st.integers(0, 4)) if damaged else 0):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        picture = decode_picture(bytes(damaged), most_pixels=10_000)
    except ImageError:
        return
    assert picture.dtype == np.uint8
    assert picture.size <= 30_000


def test_a_spec_that_makes_no_sense_is_refused() -> None:
    for wrong in (
        {"height": 0},
        {"std": (1.0, 0.0, 1.0)},
        {"fit": "crop", "shortest_edge": 10},
        {"background": (0, 0, 300)},
    ):
        with pytest.raises(ConfigError):
            ImageSpec(**{"height": 20, "width": 20} | wrong)
