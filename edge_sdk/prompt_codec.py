"""From what is said to token ids: by the chat template and the tokenizer, with images' ids in their places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_sdk.errors import PromptError, explain
from edge_sdk.text import Message, TextCodec
from edge_sdk.vision import Picture, Sight, no_sight, pictures_of


class PromptCodec:
    """Of one model; it keeps nothing of a conversation."""

    def __init__(self, codec: TextCodec, sight: Sight | None, vocab_size: int) -> None:
        self._codec, self._sight, self._vocab_size = codec, sight, vocab_size

    def render(self, messages: Sequence[Message], template: Mapping[str, Any]) -> str:
        """What the chat template makes of messages, whose images are their names."""
        return self._codec.render(
            messages if self._sight is None else self._sight.for_template(messages), variables=template
        )

    def known(self, token_ids: Sequence[int]) -> list[int]:
        """Token ids that the model has: others would fail a step, and with it whoever shares that.

        Images' ids are not among them: only :meth:`expand` makes these. Raises PromptError.
        """
        if outside := [token_id for token_id in token_ids if not 0 <= token_id < self._vocab_size]:
            expected = f"0 to {self._vocab_size - 1}"
            raise PromptError(
                explain("Token ids", expected=expected, found=outside[0], todo="Encode by this tokenizer.")
            )
        return list(token_ids)

    def expand(self, ids: list[int], pictures: Sequence[Picture]) -> list[int]:
        """Token ids with those of pictures in their places. Raises PromptError where these do not agree."""
        if self._sight is not None:
            return self._sight.expand(ids, pictures)
        if pictures:
            raise no_sight()
        return ids

    def encode(self, text: str, messages: Sequence[Mapping[str, Any]], pictures: Mapping[str, Picture]) -> list[int]:
        """The token ids of a text that shows the images of some messages. Raises PromptError as :meth:`expand`."""
        ids = self._codec.encode(text)
        return ids if self._sight is None else self._sight.expand(ids, pictures_of(messages, pictures))

    def continuation(
        self,
        text: str,
        said: tuple[str, list[int]],
        added: Sequence[Mapping[str, Any]],
        messages: Sequence[Mapping[str, Any]],
        pictures: Mapping[str, Picture],
    ) -> list[int] | None:
        """The tokens that lead from what was said, its text and its token ids, to a text; None if it begins otherwise.

        ``added``: the last of the text's ``messages``, which were not said yet.

        By the text, since a model need not have said it in the tokens that the tokenizer would choose; or by the
        tokens, since a tokenizer of words drops spaces.
        """
        said_text, said_ids = said
        if text.startswith(said_text):
            return self.encode(text[len(said_text) :], added, pictures)
        ids = self.encode(text, messages, pictures)
        return ids[len(said_ids) :] if ids[: len(said_ids)] == said_ids else None
