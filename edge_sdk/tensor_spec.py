"""What goes into a graph and comes out: names, dtypes and shapes with dynamic dimensions."""

from __future__ import annotations

from typing import Literal, Union

import msgspec

Dim = Union[int, str]
"""A fixed size, or the name of a dynamic one: ``batch``, ``length``, ``capacity`` of the caches, ``kept`` positions."""

DType = Literal["int64", "float32", "float16", "int8", "uint8"]
DTYPE_BYTES: dict[DType, int] = {"int64": 8, "float32": 4, "float16": 2, "int8": 1, "uint8": 1}


class TensorSpec(msgspec.Struct, frozen=True):
    """Name, dtype and shape of one graph input or output."""

    name: str
    dtype: DType
    shape: tuple[Dim, ...]

    def sized(self, **sizes: int) -> tuple[int, ...]:
        """The shape with its dynamic dimensions replaced, e.g. ``spec.sized(batch=1, capacity=256)``."""
        return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in self.shape)
