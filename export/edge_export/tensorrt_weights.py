"""Initialisers of the graph for TensorRT: seen as other integers without a copy, converted, or quantised."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from edge_export import float_codes
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
        self.kept = 0
        """Quantised weights that have their values still, but for the rounding of bfloat16."""

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
            dtype = helper.tensor_dtype_to_np_dtype(element)
            self._add(made, element, old.dims, self._converted(name, dtype))
        return made

    def is_lossless(self, name: str, by_output: bool, kind: float_codes.Format) -> bool:
        """Whether a float weight's values are numbers of a format; ``by_output`` as of :meth:`fp8`."""
        return float_codes.is_lossless(self._matrix(name, by_output), kind)

    def fp8(self, name: str, by_output: bool, element: int) -> tuple[str, str]:
        """The names of the E4M3 codes (out, in) and the float32 scale, () or (out), of a float weight.

        ``by_output``: whether the weight is (out, in) and not (in, out). ``element``: the ONNX type that its values
        are to be multiplied in. Raises ConfigError where that does not hold them.
        """
        codes, scale = f"{name}.fp8", f"{name}.fp8_scale"
        if codes not in self.tensors:
            self._check(name, element)
            matrix = self._matrix(name, by_output)
            scales = float_codes.fp8_scale(matrix)
            pieces = float_codes.fp8_pieces(matrix, scales)
            self._add(codes, TensorProto.FLOAT8E4M3FN, matrix.shape, self._counted(pieces))
            self._add(scale, TensorProto.FLOAT, scales.shape, [scales])
        return codes, scale

    def nvfp4(self, name: str, by_output: bool, element: int) -> tuple[str, str, str]:
        """The names of a float weight's E2M1 codes (out, in), E4M3 scales (out, in / 16) and float32 scale ().

        Arguments and errors as of :meth:`fp8`; also raises ConfigError where blocks do not fill the inputs.
        """
        codes, scales, scale = f"{name}.nvfp4", f"{name}.nvfp4_scales", f"{name}.nvfp4_scale"
        if codes not in self.tensors:
            self._check(name, element)
            matrix = self._matrix(name, by_output)
            out, width = matrix.shape
            if width % float_codes.BLOCK:
                expected = f"inputs in whole blocks of {float_codes.BLOCK}, as NVFP4 has them"
                todo = "Use --projections fp8 or plain."
                raise ConfigError(explain(f"The weight {name}", expected=expected, found=width, todo=todo))
            of_all, of_blocks = float_codes.nvfp4_tensor_scale(matrix), list[np.ndarray]()

            def pieces() -> Iterator[tuple[np.ndarray, bool]]:
                for piece, piece_scales, kept in float_codes.nvfp4_pieces(matrix, of_all):
                    of_blocks.append(piece_scales)
                    yield float_codes.packed(piece), kept

            self._add(codes, TensorProto.FLOAT4E2M1, matrix.shape, self._counted(pieces()))
            self._add(scales, TensorProto.FLOAT8E4M3FN, (out, width // float_codes.BLOCK), of_blocks)
            self._add(scale, TensorProto.FLOAT, (), [np.asarray(of_all)])
        return codes, scales, scale

    def _counted(self, pieces: Iterable[tuple[np.ndarray, bool]]) -> Iterator[np.ndarray]:
        """The codes of a weight, which is counted in the end if no piece lost anything."""
        whole = True
        for codes, kept in pieces:
            whole = whole and kept
            yield codes
        self.kept += whole

    def _matrix(self, name: str, by_output: bool) -> np.ndarray:
        """A float weight as (out, in), mapped."""
        values = self._values(self.tensors[name]).reshape(self.tensors[name].dims)
        return values if by_output else values.T

    def _check(self, name: str, element: int) -> None:
        """Raises ConfigError where a weight has a value too large for an ONNX type."""
        for _ in self._converted(name, helper.tensor_dtype_to_np_dtype(element)):
            pass

    def _converted(self, name: str, dtype: np.dtype[Any]) -> Iterator[np.ndarray]:
        """A float weight in another type, some values at a time. Raises ConfigError where one is too large for it."""
        values = self._values(self.tensors[name])
        for start in range(0, values.size, BLOCK):
            old = values[start : start + BLOCK]
            with np.errstate(over="ignore"):
                new = old.astype(dtype)
            if np.any(np.isinf(new) & ~np.isinf(old)):
                raise ConfigError(
                    explain(
                        f"The weight {name}",
                        expected=f"values that {dtype} holds",
                        found=float(np.abs(old.astype(np.float32)).max()),
                        todo="Use --precision bfloat16 or float32.",
                    )
                )
            yield new

    def _add(self, name: str, element: int, dims: Sequence[int], pieces: Iterable[np.ndarray]) -> None:
        """Writes an initialiser's bytes to the new file, a piece at a time."""
        self._append(bytes(-self.converted_bytes % ALIGNMENT))
        offset = self.converted_bytes
        for piece in pieces:
            self._append(piece.tobytes())
        tensor = TensorProto(name=name, data_type=element, dims=dims, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", CONVERTED), ("offset", offset), ("length", self.converted_bytes - offset)):
            tensor.external_data.add(key=key, value=str(value))
        self.tensors[name] = tensor

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
