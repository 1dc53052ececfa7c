"""Initialisers of the graph for TensorRT: seen as other integers without a copy, or converted to the engine's type."""

from __future__ import annotations

import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from edge_sdk.errors import ConfigError, explain

CONVERTED = "converted.data"
"""External data file of the weights that were converted."""

ALIGNMENT = 4096
"""Bytes: where a converted weight may begin, so that it can be mapped."""

BLOCK = 1 << 24
"""Values that are converted at once: memory does not grow with the weight."""

BITS: dict[int, int] = {TensorProto.INT4: 4, TensorProto.INT8: 8}


class Weights:
    """The initialisers of one graph, those of the source and those made of them; a context that owns the new file."""

    def __init__(self, initializers: list[TensorProto], source: Path, target: Path | None) -> None:
        """``source`` and ``target``: the folders of the two graphs' external data; None writes nothing."""
        self.tensors = {tensor.name: tensor for tensor in initializers}
        self.source = source
        self._path = Path(os.devnull) if target is None else target / CONVERTED
        self.converted_bytes = 0
        """Size of the new file, so far."""

    def __enter__(self) -> Weights:
        self._file = self._path.open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def bits(self, name: str) -> int:
        """8 or 4 for integer weights, 0 for others."""
        return BITS.get(self.tensors[name].data_type, 0)

    def fills_words(self, name: str) -> bool:
        """Whether the last axis of integer weights is a whole number of 32-bit words."""
        return self.tensors[name].dims[-1] * self.bits(name) % 32 == 0

    def as_words(self, name: str) -> str:
        """The name of int8 or int4 weights (..., out) seen as INT32 (..., out / 4 or out / 8): the same bytes."""
        made = f"{name}.words"
        if made not in self.tensors:
            tensor = TensorProto()
            tensor.CopyFrom(self.tensors[name])
            tensor.dims[-1] = tensor.dims[-1] * self.bits(name) // 32
            tensor.name, tensor.data_type = made, TensorProto.INT32
            self.tensors[made] = tensor
        return made

    def converted(self, name: str, element: int) -> str:
        """The name of a float weight in another ONNX element type; its own where it has that type.

        Raises ConfigError where a value is too large for the type.
        """
        old = self.tensors[name]
        if old.data_type == element:
            return name
        made = f"{name}.{TensorProto.DataType.Name(element).lower()}"
        if made not in self.tensors:
            tensor = TensorProto(name=made, data_type=element, dims=old.dims, data_location=TensorProto.EXTERNAL)
            self._append(bytes(-self.converted_bytes % ALIGNMENT))
            offset = self.converted_bytes
            self._write(old, helper.tensor_dtype_to_np_dtype(element))
            for key, value in (("location", CONVERTED), ("offset", offset), ("length", self.converted_bytes - offset)):
                tensor.external_data.add(key=key, value=str(value))
            self.tensors[made] = tensor
        return made

    def _write(self, tensor: TensorProto, dtype: np.dtype[Any]) -> None:
        values = self._values(tensor)
        with np.errstate(over="ignore"):
            for start in range(0, values.size, BLOCK):
                old = values[start : start + BLOCK]
                new = old.astype(dtype)
                if np.any(np.isinf(new) & ~np.isinf(old)):
                    raise ConfigError(
                        explain(
                            f"The weight {tensor.name}",
                            expected=f"values that {dtype} holds",
                            found=float(np.abs(old.astype(np.float32)).max()),
                            todo="Use --precision bfloat16 or float32.",
                        )
                    )
                self._append(new.tobytes())

    def _append(self, content: bytes) -> None:
        self._file.write(content)
        self.converted_bytes += len(content)

    def _values(self, tensor: TensorProto) -> np.ndarray:
        """A float weight, flat; mapped where it lies in a file."""
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if tensor.data_location != TensorProto.EXTERNAL:
            return np.frombuffer(tensor.raw_data, dtype=dtype)
        where = {entry.key: entry.value for entry in tensor.external_data}
        count = math.prod(tensor.dims)
        mapped = np.memmap(self.source / where["location"], np.uint8, "r", int(where["offset"]), count * dtype.itemsize)
        return mapped.view(dtype)
