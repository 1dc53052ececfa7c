"""What a model may cost: parameters, bytes of a storage format, or milliseconds per decoded token on a board.

Milliseconds are the estimate of :mod:`edge_sdk.roofline`, in the board's fastest mode. No board was measured.
"""

from __future__ import annotations

import msgspec

from edge_export.pack import Storage
from edge_sdk import traffic
from edge_sdk.boards import board_named
from edge_sdk.errors import ConfigError, explain
from edge_sdk.model import ModelConfig
from edge_sdk.roofline import decode_seconds

CONTEXT = 4096
"""Positions in the caches of which a step reads keys and values."""


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """One of three limits. Raises ConfigError for none or several, and for a board without a known bandwidth."""

    params: float | None = None
    gb: float | None = None
    """Of the bundle's weights, in 10**9 bytes."""
    ms: float | None = None
    """Per decoded token of one sequence."""
    board: str | None = None
    storage: Storage = Storage(weights="int4")
    context: int = CONTEXT

    def __post_init__(self) -> None:
        given = [name for name in ("params", "gb", "ms") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ConfigError(explain("The budget", expected="one of params, gb and ms", found=found, todo="Give one."))
        if self.ms is not None:
            board_named(self.board).mode()

    @property
    def limit(self) -> float:
        """In parameters, GB or ms."""
        return next(value for value in (self.params, self.gb, self.ms) if value is not None)

    def cost(self, config: ModelConfig) -> float:
        """Of a model, in the limit's unit."""
        if self.params is not None:
            return config.parameters()
        if self.gb is not None:
            return weight_bytes(config, self.storage) / 1e9
        assert self.board is not None
        return step_ms(config, self.storage, self.board, self.context)


def weight_bytes(config: ModelConfig, storage: Storage) -> float:
    """Bytes of all weights as a bundle stores them."""
    return traffic.weight_bytes(storage.describe(config), storage.weight_storage)


def step_ms(config: ModelConfig, storage: Storage, board: str, context: int = CONTEXT) -> float:
    """Estimated milliseconds of a decode step of one sequence with ``context`` positions in its caches."""
    place = board_named(board)
    return 1e3 * decode_seconds(storage.describe(config), storage.weight_storage, place, place.mode(), context)
