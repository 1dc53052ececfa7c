"""ONNX Runtime runs any bundle: on the CPU on native kernels, else and on a GPU on the operators' function bodies."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_plugins import missing_reason, native_library
from edge_sdk.backends import FIRST_CAPACITY, Engine, RowStates, Snapshot, States, Wanted, capacity_for, used
from edge_sdk.backends.host_memory import Backing, can_map, check_memory, mapped_zeros, zeros
from edge_sdk.backends.ort_device import DeviceBuffers, HostBuffers, check_providers, providers_for
from edge_sdk.bundle import ENGINES, GRAPH, WEIGHTS, Bundle
from edge_sdk.errors import BackendError, explain
from edge_sdk.model import TensorSpec
from edge_sdk.speculation import without_caches

BODY_BLOCK, KERNEL_BLOCK = 128, 512
"""Tokens fed at once: the scan's function body is quadratic in the length of a block."""

PACKED_WEIGHTS = "cpu-packed.bin"

log = logging.getLogger("edge_sdk")


class OrtStates(RowStates):
    """The states' buffers: one set that a step overwrites, or two that take turns."""

    def __init__(
        self,
        engine: OrtEngine,
        specs: Sequence[TensorSpec],
        batch: int,
        capacity: int,
        content: Sequence[np.ndarray] = (),
        past_length: np.ndarray | int = 0,
    ) -> None:
        """``content``: the states, their caches as long as ``past_length`` says; zeros where there is none."""
        super().__init__(batch, capacity)
        self.past_length[:] = past_length
        self.engine, self.specs = engine, specs
        self.backing = Backing(specs, capacity, np.zeros(batch, dtype=np.int64))
        """Of caches that are mapped."""
        self.call: _Call | None = None
        """The last step's bindings, for the next step of the same shape."""
        self._make(content)

    def _make(self, content: Sequence[np.ndarray]) -> None:
        self.back(self.past_length)
        new, place = self._zeros(), self.engine.place
        for array, part in zip(used(self.specs, new, int(self.past_length.max())), content):
            array[...] = part
        self.sets = [place.put(new), *self._further_sets(new)]
        self.turn = 0
        """The set that holds the states now."""
        self._views: dict[tuple[int, int], OrtRows] = {}

    def _further_sets(self, first: list[np.ndarray]) -> list[list[Any]]:
        """A second one where a function body runs, which may not write what it reads."""
        return [] if self.engine.native else [self.engine.place.put(self._zeros())]

    def _zeros(self) -> list[np.ndarray]:
        batch = len(self.past_length)
        if not self.engine.maps_caches:
            return zeros(self.specs, batch=batch, capacity=self.capacity)
        caches = [spec for spec in self.specs if "capacity" in spec.shape]
        scans = iter(zeros(without_caches(self.specs), batch=batch))
        mapped = iter(mapped_zeros(caches, batch=batch, capacity=self.capacity))
        return [next(mapped if spec in caches else scans) for spec in self.specs]

    def back(self, positions: np.ndarray) -> None:
        """Looks for memory for so many positions of each row (batch). Raises MemoryLimitError, and changes nothing."""
        if self.engine.maps_caches:
            self.backing.extend(positions)

    def content(self) -> list[np.ndarray]:
        """The states, the caches' used positions only; the engine's own memory where that is the host's."""
        return used(self.specs, self.engine.place.arrays(self.sets[self.turn]), int(self.past_length.max()))

    def reserve(self, positions: int) -> None:
        """See :meth:`edge_sdk.backends.RowStates.reserve`; everything moves into larger buffers."""
        if positions > self.capacity:
            content = self.content()
            self.capacity = capacity_for(positions, self.capacity, self.engine.max_length)
            self.call = None
            self._make(content)

    def rows(self, start: int, stop: int) -> OrtRows:
        """See :meth:`edge_sdk.backends.RowStates.rows`."""
        if (start, stop) not in self._views:
            self._views[start, stop] = OrtRows(self, start, stop)
        return self._views[start, stop]

    def take(self, source: RowStates) -> None:
        """See :meth:`edge_sdk.backends.RowStates.take`."""
        assert isinstance(source, OrtStates)
        (length,) = source.past_length
        self.reserve(int(length))
        self.back(source.past_length)
        arrays = self.engine.place.arrays(self.sets[self.turn])
        for mine, theirs in zip(used(self.specs, arrays, int(length)), source.content()):
            mine[...] = theirs
        self.past_length[:] = length

    def advance(self, length: int) -> None:
        """Notes that ``length`` positions were added to every row."""
        self.past_length += length
        self.turn = (self.turn + 1) % len(self.sets)

    def copy(self) -> OrtStates:
        """Another memory with the same content."""
        size = (len(self.past_length), self.capacity)
        return type(self)(self.engine, self.specs, *size, self.content(), self.past_length)

    def snapshot(self) -> Snapshot:
        """See :meth:`edge_sdk.backends.States.snapshot`."""
        (length,) = self.past_length
        return Snapshot(int(length), tuple(np.array(array) for array in self.content()))


class OrtRows(OrtStates):
    """Some rows of other states, in their memory; of an engine that needs only one set of buffers."""

    def __init__(self, whole: OrtStates, start: int, stop: int) -> None:
        self.engine, self.specs, self.capacity, self.call = whole.engine, whole.specs, whole.capacity, None
        self.past_length = whole.past_length[start:stop]
        self.backing = whole.backing.rows(start, stop)
        (buffers,) = whole.sets
        self.sets, self.turn = [[buffer[start:stop] for buffer in buffers]], 0

    def reserve(self, positions: int) -> None:
        """Only the whole can have more room; it must have made it."""
        assert positions <= self.capacity


class _Call:
    """Bindings of one session to one States for inputs of one shape: nothing is allocated when it is repeated.

    The States own their call and not the other way round, so that both are freed as soon as a session ends.
    """

    def __init__(self, engine: OrtEngine, batch: int, length: int, kept: int) -> None:
        self.engine, self.shape = engine, (length, kept)
        self.input_ids = np.empty((batch, length), dtype=np.int64)
        self.logits = np.empty((batch, kept, engine.config.vocab_size), dtype=np.float32)
        self._positions = np.arange(length - kept, length)
        sizes = {"batch": batch, "length": length, "kept": kept}
        self.extras = {spec.name: np.empty(spec.sized(**sizes), np.float32) for spec in engine.extra_outputs}
        """What the graph returns behind the states, by name; see ModelConfig.speculation_specs."""
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
        config, sets, host, place = self.engine.config, states.sets, self.engine.host, self.engine.place
        read, written = sets[states.turn], sets[(states.turn + 1) % len(sets)]
        fed = [host.share(array) for array in (self.input_ids, states.past_length, self._positions)]
        fed += [place.share(buffer) for buffer in read]
        made = [host.share(self.logits), *(place.share(buffer) for buffer in written)]
        made += [host.share(array) for array in self.extras.values()]
        self._alive += fed + made
        binding = self.engine.session.io_binding()
        for spec, value in zip(config.inputs(), fed):
            binding.bind_ortvalue_input(spec.name, value)
        for spec, value in zip(config.outputs(), made):
            binding.bind_ortvalue_output(spec.name, value)
        return binding


class OrtEngine(Engine):
    """An ONNX Runtime session over the bundle's graph, which reads and writes the states where they lie."""

    states_type = OrtStates

    extra_outputs: tuple[TensorSpec, ...] = ()
    """Outputs to ask for behind the states."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        exact: bool = False,
        kernels: str = "auto",
        device: str = "cpu",
        profile: Path | None = None,
    ) -> None:
        """``exact`` keeps activations in float32 where quantised products would round them to int8.

        ``device``: ``cpu``, ``cuda`` or ``tensorrt``; only the first has native kernels.

        ``profile``: how the name of ONNX Runtime's trace begins, which :meth:`end_profile` completes.

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
        self.bundle, self.config = bundle, bundle.manifest.model
        self.max_length = self.config.max_length
        self.host = HostBuffers(onnxruntime.OrtValue)
        self.place = self.host if device == "cpu" else DeviceBuffers(onnxruntime.OrtValue, "cuda")
        cache = engines_folder(bundle) if device == "tensorrt" else None
        self._providers = providers_for(device, onnxruntime.get_available_providers(), cache)
        self._options = options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1" if exact else "4")
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        if threads is not None:
            options.intra_op_num_threads = threads
        self.native = device == "cpu" and _add_kernels(options, bundle, exact, kernels)
        self.has_rows = self.native
        self.maps_caches = self.native and can_map(self.config.state_bytes(1, self.max_length))
        """Whether caches have the whole context's capacity from the beginning, since only what is written costs."""
        self.first_capacity = self.max_length if self.maps_caches else min(FIRST_CAPACITY, self.max_length)
        self.prefill_block = KERNEL_BLOCK if self.native else BODY_BLOCK
        kind = "native kernels" if self.native else "bodies"
        self.name = f"onnxruntime {onnxruntime.__version__} on {device.upper()}, {kind}"
        self.session = self.open(GRAPH)
        check_providers(device, self.session.get_providers())

    def open(self, graph: str) -> Any:
        """A session over one of the bundle's graphs; all of them share their packed weights."""
        from onnxruntime import InferenceSession

        path = str(self.bundle.file(graph))
        try:
            return InferenceSession(path, self._options, providers=self._providers)
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise BackendError(
                explain(path, expected="a graph that loads", found=error, todo="Export it again.")
            ) from error

    def end_profile(self) -> None:
        """See :meth:`edge_sdk.backends.Engine.end_profile`."""
        self.session.end_profiling()

    def empty_states(self, batch: int) -> OrtStates:
        """Zeros. Kernels write the new states over the old ones; a function body may not write what it reads."""
        return self.states_type(self, self.config.past_specs(), batch, self.first_capacity)

    def check_room(self, positions: int) -> None:
        """See :meth:`edge_sdk.backends.Engine.check_room`."""
        if self.place is self.host:
            check_memory((1 if self.native else 2) * self.config.state_bytes(1, positions))

    def load_states(self, snapshot: Snapshot) -> OrtStates:
        """See :meth:`edge_sdk.backends.Engine.load_states`."""
        capacity = capacity_for(snapshot.length, self.first_capacity, self.max_length)
        return self.states_type(self, self.config.past_specs(), 1, capacity, snapshot.arrays, snapshot.length)

    def step(self, input_ids: np.ndarray, states: States, logits: Wanted = "last") -> np.ndarray:
        """Feeds tokens (batch, length) int64; see :meth:`edge_sdk.backends.Engine.step`."""
        assert isinstance(states, OrtStates)
        length = input_ids.shape[1]
        call = self._run(input_ids, states, {"last": 1, "all": length, "none": 0}[logits])
        states.advance(length)
        return call.logits

    def _run(self, input_ids: np.ndarray, states: OrtStates, kept: int) -> _Call:
        """One run of the graph that leaves it to the caller to advance the states."""
        length = input_ids.shape[1]
        states.reserve(int(states.past_length.max()) + length)
        states.back(states.past_length + length)
        if states.call is None or states.call.shape != (length, kept):
            states.call = _Call(self, len(states.past_length), length, kept)
        states.call.run(input_ids, states)
        return states.call


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
    folder = engines_folder(bundle)
    return None if folder is None else folder.resolve() / PACKED_WEIGHTS


def engines_folder(bundle: Bundle) -> Path | None:
    """The bundle's folder for what a device makes for itself; None if nothing may be written there."""
    folder = bundle.path / ENGINES
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None
