"""What may be asked of an answer: its length, how tokens are chosen, where it ends."""

from __future__ import annotations

from typing import Any

import msgspec

from edge_sdk.errors import ConfigError, explain
from edge_sdk.grammar import Grammar


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an answer is made; by default greedily. Raises ConfigError for a value that makes no sense."""

    max_new_tokens: int = 256
    """Longest answer, in tokens."""
    deadline_ms: float | None = None
    """From the call on; what was made by then is the answer."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    grammar: Grammar | None = None
    """What the answer must look like; complete within max_new_tokens, and where a deadline or a cancel ends it."""

    temperature: float = 0.0
    """0 takes the likeliest token; 1 draws from the model's distribution, less sharpens it, more flattens it."""
    top_k: int = 0
    """Draw from the so many likeliest tokens; 0 is all."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability (Holtzman et al. 2020, arXiv 1904.09751)."""
    min_p: float = 0.0
    """Draw from tokens at least this times as likely as the likeliest (Nguyen et al. 2024, arXiv 2407.01082)."""
    seed: int | None = None
    """Makes a draw repeatable on one machine; None draws anew each time."""

    repetition_penalty: float = 1.0
    """Divides the positive logits of all tokens of the context and multiplies the negative ones (Keskar et al. 2019,
    arXiv 1909.05858, section 4.1)."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens that the answer already holds."""
    frequency_penalty: float = 0.0
    """As presence_penalty, as often as the answer holds them."""
    logit_bias: dict[int, float] = {}
    """Added to the logits of these token ids; -inf forbids one."""
    logprobs: int | None = None
    """With each token its log-probability, and those of so many likeliest ones; None is neither."""

    def __post_init__(self) -> None:
        limits = {
            "max_new_tokens": (1, None),
            "top_k": (0, None),
            "top_p": (0.0, 1.0),
            "min_p": (0.0, 1.0),
            "temperature": (0.0, None),
            "logprobs": (0, 100),
            "deadline_ms": (0.0, None),
            "seed": (0, None),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is not None and not (low <= value and (high is None or value <= high)):
                upper = "" if high is None else f" and at most {high}"
                raise _wrong(name, f"at least {low}{upper}", value)
        if not self.repetition_penalty > 0:
            raise _wrong("repetition_penalty", "more than 0", self.repetition_penalty)
        if self.top_p == 0:
            raise _wrong("top_p", "more than 0", self.top_p)
        if "" in self.stop:
            raise _wrong("stop", "texts", "an empty one")

    def but(self, **changes: Any) -> Options:
        """These options with some changed. Raises ConfigError for an unknown name or a wrong type or value."""
        try:
            return msgspec.convert(msgspec.structs.asdict(self) | changes, Options)
        except msgspec.ValidationError as error:
            raise ConfigError(
                explain("The options", expected="known ones", found=error, todo="See edge_sdk.Options.")
            ) from None

    def numbered(self, index: int) -> Options:
        """Those of one of several answers to a prompt: with a seed, each has the next one."""
        return self if self.seed is None else self.but(seed=self.seed + index)


def _wrong(name: str, expected: str, found: object) -> ConfigError:
    return ConfigError(explain(name, expected=expected, found=found, todo="Correct the option."))
