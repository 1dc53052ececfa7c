"""What a session does with images: tokens that stand for them, and the embeddings in these tokens' place.

An image's tokens are negative numbers drawn from the hash of its pixels. So whatever compares or stores token ids, as
the prefix cache and saved sessions do, tells images apart without knowing of them.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_sdk.backends import Engine
from edge_sdk.errors import ImageError, PromptError, explain
from edge_sdk.images import MOST_PIXELS, as_picture, pixel_values
from edge_sdk.text import TextCodec
from edge_sdk.vision_spec import VisionSpec

REMEMBERED = 4
"""Images whose features are kept: of one that is being read, and of those that several sessions ask about."""


@dataclass(frozen=True, eq=False)
class Picture:
    """An image as a conversation holds it."""

    name: str
    """Tells it from every other image."""
    pixels: np.ndarray
    """(3, height, width) float32, prepared."""
    token_ids: tuple[int, ...]
    """Negative, one for each position of the context that it takes."""


class Sight:
    """How one model sees; shared by its sessions and safe to use from several threads."""

    def __init__(self, spec: VisionSpec, engine: Engine, codec: TextCodec) -> None:
        self.spec, self._engine, self._codec = spec, engine, codec
        self._placeholder = codec.tokenizer.id_to_token(spec.image_token_id) or ""
        self._features: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def picture(self, image: object, most_pixels: int = MOST_PIXELS) -> Picture:
        """Prepares an image: a path, an encoded file's bytes, a Frame, or an RGB array. Raises ImageError."""
        pixels = pixel_values(as_picture(image, most_pixels), self.spec.images)
        hashed = hashlib.shake_256(pixels.tobytes()).digest(32 + 4 * self.spec.tokens)
        numbers = np.frombuffer(hashed, "<u4", offset=32) >> 1
        return Picture(hashed[:32].hex(), pixels, tuple((-1 - numbers.astype(np.int64)).tolist()))

    def for_template(self, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Messages as the chat template takes them: in parts if it speaks of images, else as text with placeholders."""
        return [{**message, "content": self._content(message.get("content"))} for message in messages]

    def _content(self, content: object) -> object:
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list):
            return content
        if self._codec.shows_images:
            return [{"type": "image"} if part["type"] == "image" else part for part in parts]
        return "".join(self._placeholder if part["type"] == "image" else part["text"] for part in parts)

    def expand(self, token_ids: Sequence[int], pictures: Sequence[Picture]) -> list[int]:
        """Token ids with each placeholder replaced by a picture's, in their order. Raises PromptError."""
        found = sum(token_id == self.spec.image_token_id for token_id in token_ids)
        if found != len(pictures):
            raise PromptError(
                explain(
                    "The prompt",
                    expected=f"as many {self._placeholder} as images, {len(pictures)}",
                    found=found,
                    todo="Leave them out of the text: the chat template writes them.",
                )
            )
        rest = iter(pictures)
        ids: list[int] = []
        for token_id in token_ids:
            ids += next(rest).token_ids if token_id == self.spec.image_token_id else (token_id,)
        return ids

    def embed(self, token_ids: Sequence[int], start: int, stop: int, pictures: Iterable[Picture]) -> np.ndarray:
        """The embeddings (stop - start, hidden) of some of a conversation's tokens. Raises PromptError."""
        block = np.array([[max(token_id, 0) for token_id in token_ids[start:stop]]], dtype=np.int64)
        embedded = np.array(self._engine.embed(block)[0])
        position = start
        while position < stop:
            if token_ids[position] >= 0:
                position += 1
                continue
            first = _begin_of_image(token_ids, position, self.spec.tokens)
            end = min(first + self.spec.tokens, stop)
            picture = _find(pictures, tuple(token_ids[first : first + self.spec.tokens]))
            embedded[position - start : end - start] = self._features_of(picture)[position - first : end - first]
            position = end
        return embedded

    def _features_of(self, picture: Picture) -> np.ndarray:
        """(tokens, hidden) float32."""
        with self._lock:
            if picture.name in self._features:
                self._features.move_to_end(picture.name)
                return self._features[picture.name]
        features: np.ndarray = self._engine.image_features(picture.pixels[None])[0]
        with self._lock:
            self._features[picture.name] = features
            while len(self._features) > REMEMBERED:
                self._features.popitem(last=False)
        return features


def _begin_of_image(token_ids: Sequence[int], position: int, tokens: int) -> int:
    """Where the image begins that the token at a position belongs to; images may follow each other at once."""
    run = position
    while run > 0 and token_ids[run - 1] < 0:
        run -= 1
    return position - (position - run) % tokens


def _find(pictures: Iterable[Picture], token_ids: tuple[int, ...]) -> Picture:
    for picture in pictures:
        if picture.token_ids == token_ids:
            return picture
    raise PromptError(
        explain("An image", expected="its pixels", found="only its hash, as a saved session has it", todo="Send it.")
    )


def take_images(
    messages: Sequence[Mapping[str, Any]], sight: Sight | None
) -> tuple[list[dict[str, Any]], dict[str, Picture]]:
    """Messages with their images' names in the place of the images, and these by name.

    A message's content may be a list of ``{"type": "text", "text": ...}`` and ``{"type": "image", "image": ...}``.
    Raises ImageError for an image that cannot be read, and for any where the model has no sight.
    """
    pictures: dict[str, Picture] = {}
    taken = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise PromptError(
                explain("A message", expected="a role and a content", found=type(message).__name__, todo="Correct it.")
            )
        content = message.get("content")
        if isinstance(content, (list, tuple)):
            content = [_take(part, sight, pictures) for part in content]
        taken.append({**message, "content": content} if "content" in message else dict(message))
    return taken, pictures


def _take(part: Any, sight: Sight | None, pictures: dict[str, Picture]) -> Any:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if sight is not None and not (kind == "image" or (kind == "text" and isinstance(part.get("text"), str))):
        raise PromptError(explain("A part of a message", expected="text or an image", found=part, todo="Correct it."))
    if kind != "image":
        return part
    if sight is None:
        raise no_sight()
    image = part.get("image")
    picture = image if isinstance(image, Picture) else sight.picture(image)
    pictures[picture.name] = picture
    return {"type": "image", "image": picture.name}


def no_sight() -> ImageError:
    """What a bundle without an encoder says to images."""
    return ImageError(
        explain("An image", expected="text", found="one, and this bundle has no vision graph", todo="Leave it out.")
    )


def pictures_of(messages: Iterable[Mapping[str, Any]], pictures: Mapping[str, Picture]) -> list[Picture]:
    """Those of messages from :func:`take_images`, in the order in which a template shows them.

    Raises PromptError for one that is not among ``pictures``, which are by name.
    """
    contents = [message.get("content") for message in messages]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    names = [part["image"] for part in parts if isinstance(part, Mapping) and part.get("type") == "image"]
    if lost := [name for name in names if name not in pictures]:
        raise PromptError(
            explain("The images", expected="their pixels", found=f"{len(lost)} only as a hash", todo="Show them again.")
        )
    return [pictures[name] for name in names]
