"""ONNX Runtime on the CPU: runs any bundle, on native kernels or else on the operators' function bodies."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_plugins import missing_reason, native_library
from edge_sdk.backends import FIRST_CAPACITY, States, Wanted, capacity_for
from edge_sdk.bundle import ENGINES, GRAPH, WEIGHTS, Bundle
from edge_sdk.errors import BackendError, explain
from edge_sdk.model import TensorSpec

BODY_BLOCK, KERNEL_BLOCK = 128, 512
"""Tokens fed at once: the scan's function body is quadratic in the length of a block."""

CACHE_LINE = 64
"""Bytes."""

PACKED_WEIGHTS = "cpu-packed.bin"

log = logging.getLogger("edge_sdk")


class OrtStates(States):
    """The states' buffers: one set that a step overwrites, or two that take turns."""

    def __init__(self, specs: Sequence[TensorSpec], batch: int, capacity: int, sets: int) -> None:
        super().__init__(batch, capacity)
        self.specs = specs
        self.sets = [self._zeros() for _ in range(sets)]
        self.turn = 0
        """The set that holds the states now."""
        self.call: _Call | None = None
        """The last step's bindings, for the next step of the same shape."""

    def _zeros(self) -> list[np.ndarray]:
        sizes = {"batch": len(self.past_length), "capacity": self.capacity}
        return _zeros([(spec.sized(**sizes), np.dtype(spec.dtype)) for spec in self.specs])

    def grow(self, capacity: int) -> None:
        """Moves everything into larger buffers."""
        self.capacity, self.call = capacity, None
        old = self.sets[self.turn]
        self.sets = [self._zeros() for _ in self.sets]
        used = int(self.past_length.max())
        for spec, before, after in zip(self.specs, old, self.sets[self.turn]):
            kept = slice(None) if "capacity" not in spec.shape else (slice(None), slice(None), slice(used))
            after[kept] = before[kept]

    def advance(self, length: int) -> None:
        """Notes that ``length`` positions were added to every row."""
        self.past_length += length
        self.turn = (self.turn + 1) % len(self.sets)

    def copy(self) -> OrtStates:
        """Another memory with the same content."""
        other = OrtStates(self.specs, len(self.past_length), self.capacity, len(self.sets))
        other.past_length[:] = self.past_length
        for mine, theirs in zip(self.sets[self.turn], other.sets[other.turn]):
            theirs[...] = mine
        return other


def _zeros(arrays: Sequence[tuple[tuple[int, ...], np.dtype[Any]]]) -> list[np.ndarray]:
    """Zeros of these shapes and types, each beginning at a cache line, in one piece of memory.

    One piece is large enough for numpy to ask for huge pages. It is touched here: a page that is first touched costs
    microseconds, and thousands of them would make the first step late.
    """
    sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in arrays]
    starts = np.cumsum([0, *(-(-size // CACHE_LINE) * CACHE_LINE for size in sizes)])
    memory = np.empty(starts[-1] + CACHE_LINE, dtype=np.uint8)
    memory.fill(0)
    memory = memory[-memory.ctypes.data % CACHE_LINE :]
    return [
        memory[start : start + size].view(dtype).reshape(shape)
        for start, size, (shape, dtype) in zip(starts, sizes, arrays)
    ]


class _Call:
    """Bindings of one session to one States for inputs of one shape: nothing is allocated when it is repeated.

    The States own their call and not the other way round, so that both are freed as soon as a session ends.
    """

    def __init__(self, engine: OrtEngine, batch: int, length: int, kept: int) -> None:
        self.engine, self.shape = engine, (length, kept)
        self.input_ids = np.empty((batch, length), dtype=np.int64)
        self.logits = np.empty((batch, kept, engine.config.vocab_size), dtype=np.float32)
        self._positions = np.arange(length - kept, length)
        self._bindings: dict[int, Any] = {}
        self._alive: list[Any] = []
        """The OrtValues, which keep the arrays' memory from being freed."""

    def run(self, input_ids: np.ndarray, states: OrtStates) -> None:
        """One step of the session, from the states' current set of buffers into the next."""
        self.input_ids[...] = input_ids
        if states.turn not in self._bindings:
            self._bindings[states.turn] = self._bind(states)
        self.engine.session.run_with_iobinding(self._bindings[states.turn])

    def _bind(self, states: OrtStates) -> Any:
        config, sets = self.engine.config, states.sets
        read, written = sets[states.turn], sets[(states.turn + 1) % len(sets)]
        fed = (self.input_ids, states.past_length, self._positions, *read)
        binding = self.engine.session.io_binding()
        for spec, array in zip(config.inputs(), fed):
            binding.bind_ortvalue_input(spec.name, self._share(array))
        for spec, array in zip(config.outputs(), (self.logits, *written)):
            binding.bind_ortvalue_output(spec.name, self._share(array))
        return binding

    def _share(self, array: np.ndarray) -> Any:
        """An OrtValue in the array's own memory."""
        self._alive.append(self.engine.ort_value(array))
        return self._alive[-1]


class OrtEngine:
    """An ONNX Runtime session over the bundle's graph, which reads and writes the states where they lie."""

    def __init__(
        self, bundle: Bundle, *, threads: int | None = None, exact: bool = False, kernels: str = "auto"
    ) -> None:
        """``exact`` keeps activations in float32 where quantised products would round them to int8.

        ``kernels``: ``auto`` takes the native kernels where they are installed, ``none`` the function bodies, any
        other word is the instruction set that the kernels must use. Raises BackendError when onnxruntime is not
        installed or refuses the graph, or when kernels are asked for and there are none.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise BackendError(
                explain("The CPU engine", expected="onnxruntime", found=error, todo="pip install 'edge-sdk[cpu]'")
            ) from None
        self.config = bundle.manifest.model
        self.ort_value = onnxruntime.OrtValue.ortvalue_from_numpy
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1" if exact else "4")
        if threads is not None:
            options.intra_op_num_threads = threads
        self.native = _add_kernels(options, bundle, exact, kernels)
        self.prefill_block = KERNEL_BLOCK if self.native else BODY_BLOCK
        self.name = f"onnxruntime {onnxruntime.__version__} on the CPU, {'native kernels' if self.native else 'bodies'}"
        try:
            self.session = onnxruntime.InferenceSession(
                str(bundle.file(GRAPH)), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise BackendError(
                explain(str(bundle.file(GRAPH)), expected="a graph that loads", found=error, todo="Export it again.")
            ) from error

    def empty_states(self, batch: int) -> OrtStates:
        """Zeros. Kernels write the new states over the old ones; a function body may not write what it reads."""
        capacity = min(FIRST_CAPACITY, self.config.max_length)
        return OrtStates(self.config.past_specs(), batch, capacity, sets=1 if self.native else 2)

    def step(self, input_ids: np.ndarray, states: States, logits: Wanted = "last") -> np.ndarray:
        """Feeds tokens (batch, length) int64; see :meth:`edge_sdk.backends.Engine.step`."""
        assert isinstance(states, OrtStates)
        length = input_ids.shape[1]
        needed = int(states.past_length.max()) + length
        if needed > states.capacity:
            states.grow(capacity_for(needed, states.capacity, self.config.max_length))
        kept = {"last": 1, "all": length, "none": 0}[logits]
        if states.call is None or states.call.shape != (length, kept):
            states.call = _Call(self, len(states.past_length), length, kept)
        states.call.run(input_ids, states)
        states.advance(length)
        return states.call.logits


def _add_kernels(options: Any, bundle: Bundle, exact: bool, kernels: str) -> bool:
    """Registers the native kernels with the session's options, if they are wanted and there; says what will run."""
    cost = "the edge operators run on their ONNX function bodies, slower and with every state copied in each step"
    if kernels == "none":
        log.info("native kernels are switched off: %s", cost)
        return False
    library = native_library()
    if library is None:
        if kernels != "auto":
            raise BackendError(
                explain("kernels", expected="an installed kernel library", found="none", todo="Use auto or none.")
            )
        log.warning("no native kernels are installed: %s. %s", cost, missing_reason())
        return False
    options.add_session_config_entry("edge.exact", "1" if exact else "0")
    if kernels != "auto":
        options.add_session_config_entry("edge.isa", kernels)
    packed = _packed_weights(bundle)
    if packed is not None:
        options.add_session_config_entry("edge.packed_weights", str(packed))
        options.add_session_config_entry("edge.packed_key", bundle.manifest.files[WEIGHTS].sha256)
    try:
        options.register_custom_ops_library(str(library))  # it reads the entries above
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        if kernels != "auto":
            raise BackendError(
                explain(str(library), expected=f"kernels for {kernels}", found=error, todo="Use auto or none.")
            ) from error
        log.warning("%s is left aside, since it was refused (%s): %s", library, error, cost)
        return False
    log.info("the edge operators run on native kernels (%s)", kernels)
    return True


def _packed_weights(bundle: Bundle) -> Path | None:
    """Where the kernels keep weights in the layout that this machine reads fastest; None if nothing may be written."""
    folder = bundle.path / ENGINES
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        return None
    return folder.resolve() / PACKED_WEIGHTS if os.access(folder, os.W_OK) else None
