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
from edge_sdk.backends.host_memory import Backing, buffers, can_map, fill, mapped, zeros
from edge_sdk.backends.ort_bindings import Bindings
from edge_sdk.backends.ort_device import DeviceBuffers, HostBuffers, check_providers, providers_for
from edge_sdk.backends.ort_vision import EmbeddingSessions
from edge_sdk.bundle import ENGINES, GRAPH, WEIGHTS, Bundle
from edge_sdk.errors import BackendError, explain
from edge_sdk.memory_budget import MemoryBudget
from edge_sdk.speculation import only_caches, without_caches
from edge_sdk.tensor_spec import TensorSpec

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
        """``content``: the states, their caches as long as ``past_length`` says; if empty, zeros."""
        super().__init__(batch, capacity)
        self.past_length[:] = past_length
        self.engine, self.specs = engine, specs
        self.call: Call | None = None
        """The last step's bindings, for the next step of the same shape."""
        self._make(content)

    def _make(self, content: Sequence[np.ndarray]) -> None:
        new, backing = self._buffers()
        fill(self.specs, new, content, int(self.past_length.max()), behind=backing is None)
        self.sets, self.backing = [self.engine.place.put(new), *self._further_sets(new)], backing
        self.turn = 0
        """The set that holds the states now."""
        self._views: dict[tuple[int, int], OrtRows] = {}
        self._values: dict[int, list[Any]] = {}

    def _further_sets(self, first: list[np.ndarray]) -> list[list[Any]]:
        """A second one where a function body runs, which may not write what it reads."""
        if self.engine.native:
            return []
        made = zeros(self.specs, self.engine.budget, batch=len(self.past_length), capacity=self.capacity)
        return [self.engine.place.put(made)]

    def _buffers(self) -> tuple[list[np.ndarray], Backing | None]:
        """A set with anything in it, and what of its caches is charged for, if they are mapped."""
        budget, batch = self.engine.budget, len(self.past_length)
        if not self.engine.maps_caches:
            return buffers(self.specs, budget, batch=batch, capacity=self.capacity), None
        scans = iter(buffers(without_caches(self.specs), budget, batch=batch))
        arrays, backing = mapped(only_caches(self.specs), budget, self.capacity, self.past_length)
        caches = iter(arrays)
        return [next(caches if "capacity" in spec.shape else scans) for spec in self.specs], backing

    def content(self) -> list[np.ndarray]:
        """The states, the caches' used positions only; the engine's own memory where that is the host's."""
        return used(self.specs, self.engine.place.arrays(self.sets[self.turn]), int(self.past_length.max()))

    def reserve(self, positions: int) -> None:
        """See :meth:`edge_sdk.backends.RowStates.reserve`; everything moves into larger buffers."""
        if positions > self.capacity:
            content, before = self.content(), self.capacity
            self.capacity = capacity_for(positions, before, self.engine.max_length)
            try:
                self._make(content)
            except BaseException:
                self.capacity = before
                raise
            self.call = None

    def make_room(self, positions: np.ndarray) -> None:
        """Makes room for so many positions of each row (batch), or changes nothing. Raises as :meth:`reserve`."""
        self.reserve(int(positions.max()))
        if self.backing is not None:
            self.backing.extend(positions)

    @property
    def room(self) -> int:
        """Positions that every row can have without more memory."""
        return self.capacity if self.backing is None else int(self.backing.positions.min())

    def call_for(self, length: int, kept: int) -> Call:
        """The bindings of a step over so many tokens, with the logits of the last ``kept`` ones."""
        if self.call is None or self.call.shape != (length, kept):
            self.call = Call(self.engine, len(self.past_length), length, kept)
        return self.call

    def values(self, turn: int) -> list[Any]:
        """A set of buffers as OrtValues, made once for all calls."""
        if turn not in self._values:
            self._values[turn] = [self.engine.place.share(buffer) for buffer in self.sets[turn]]
        return self._values[turn]

    @property
    def written(self) -> int:
        """The set that a step writes."""
        return (self.turn + 1) % len(self.sets)

    def rows(self, start: int, stop: int) -> OrtRows:
        """See :meth:`edge_sdk.backends.RowStates.rows`."""
        if (start, stop) not in self._views:
            self._views[start, stop] = OrtRows(self, start, stop)
        return self._views[start, stop]

    def take(self, source: RowStates) -> None:
        """See :meth:`edge_sdk.backends.RowStates.take`."""
        assert isinstance(source, OrtStates)
        (length,) = source.past_length
        self.make_room(source.past_length)
        self.fill(source.content(), int(length))

    def fill(self, content: Sequence[np.ndarray], length: int) -> None:
        """Takes a single row's states of so many positions, for which there is room."""
        arrays = self.engine.place.arrays(self.sets[self.turn])
        fill(self.specs, arrays, content, length, behind=False)
        self.past_length[:] = length

    def advance(self, length: int) -> None:
        """Notes that ``length`` positions were added to every row."""
        self.past_length += length
        self.turn = self.written

    def copy(self) -> OrtStates:
        """Another memory with the same content."""
        size = (len(self.past_length), self.capacity)
        return type(self)(self.engine, self.specs, *size, self.content(), self.past_length)

    def snapshot(self) -> Snapshot:
        """See :meth:`edge_sdk.backends.States.snapshot`."""
        seen = self.view()
        self.engine.budget.check(seen.nbytes)
        return Snapshot(seen.length, tuple(np.array(array) for array in seen.arrays))

    def view(self) -> Snapshot:
        """See :meth:`edge_sdk.backends.States.view`."""
        (length,) = self.past_length
        return Snapshot(int(length), tuple(self.content()))


class OrtRows(OrtStates):
    """Some rows of other states, in their memory; of an engine that needs only one set of buffers."""

    def __init__(self, whole: OrtStates, start: int, stop: int) -> None:
        self.engine, self.specs, self.capacity, self.call = whole.engine, whole.specs, whole.capacity, None
        self.past_length = whole.past_length[start:stop]
        self.backing = None if whole.backing is None else whole.backing.rows(start, stop)
        (buffers,) = whole.sets
        self.sets, self.turn, self._values = [[buffer[start:stop] for buffer in buffers]], 0, {}

    def reserve(self, positions: int) -> None:
        """Only the whole can have more room; it must have made it."""
        assert positions <= self.capacity


class Call:
    """Bindings of one session to one States for inputs of one shape: nothing is allocated when it is repeated.

    The States own their call and not the other way round, so that both are freed as soon as a session ends.
    """

    def __init__(
        self, engine: OrtEngine, batch: int, length: int, kept: int, extras: Sequence[TensorSpec] = ()
    ) -> None:
        """``extras``: outputs to ask for behind the states."""
        self.shape = (length, kept)
        fed = engine.config.inputs()[0]
        self.fed = np.empty(fed.sized(batch=batch, length=length), dtype=fed.dtype)
        """Tokens, or the embeddings of a model that sees."""
        self.logits = np.empty((batch, kept, engine.config.vocab_size), dtype=np.float32)
        sizes = {"batch": batch, "length": length, "kept": kept}
        self.extras = {spec.name: np.empty(spec.sized(**sizes), np.float32) for spec in extras}
        """What the graph returns behind the states, by name; see ModelConfig.speculation_specs."""
        inputs = {fed.name: self.fed, "logit_positions": np.arange(length - kept, length)}
        self._bindings = Bindings(engine, inputs, {"logits": self.logits, **self.extras})

    @property
    def fresh(self) -> bool:
        """Whether the last run had to make its bindings."""
        return self._bindings.fresh

    def run(self, fed: np.ndarray, states: OrtStates, written: int) -> None:
        """One step of the session, from the states' current set of buffers into another or the same."""
        self.fed[...] = fed
        self._bindings.run(states, written)


class OrtEngine(Engine):
    """An ONNX Runtime session over the bundle's graph, which reads and writes the states where they lie."""

    states_type: type[OrtStates] = OrtStates

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
        self.max_length, self.budget = self.config.max_length, MemoryBudget()
        self.past_specs, self.present_specs = self.config.past_specs(), self.config.present_specs()
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
        self.embeddings = None if self.config.vision is None else EmbeddingSessions(self)

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

    def limit_states(self, max_bytes: int) -> None:
        """See :meth:`edge_sdk.backends.Engine.limit_states`."""
        if self.place is not self.host:
            super().limit_states(max_bytes)
        self.budget.limit_bytes = max_bytes

    def embed(self, input_ids: np.ndarray) -> np.ndarray:
        """See :meth:`edge_sdk.backends.Engine.embed`."""
        assert self.embeddings is not None
        return self.embeddings.embed(input_ids)

    def image_features(self, pixel_values: np.ndarray) -> np.ndarray:
        """See :meth:`edge_sdk.backends.Engine.image_features`."""
        assert self.embeddings is not None
        return self.embeddings.image_features(pixel_values)

    def end_profile(self) -> None:
        """See :meth:`edge_sdk.backends.Engine.end_profile`."""
        self.session.end_profiling()

    def empty_states(self, batch: int) -> OrtStates:
        """Zeros. Kernels write the new states over the old ones; a function body may not write what it reads."""
        return self.states_type(self, self.past_specs, batch, self.first_capacity)

    def check_room(self, positions: int) -> None:
        """See :meth:`edge_sdk.backends.Engine.check_room`."""
        if self.place is self.host:
            self.budget.check((1 if self.native else 2) * self.config.state_bytes(1, positions))

    def load_states(self, snapshot: Snapshot) -> OrtStates:
        """See :meth:`edge_sdk.backends.Engine.load_states`."""
        capacity = capacity_for(snapshot.length, self.first_capacity, self.max_length)
        return self.states_type(self, self.past_specs, 1, capacity, snapshot.arrays, snapshot.length)

    def step(self, input_ids: np.ndarray, states: States, logits: Wanted = "last") -> np.ndarray:
        """Feeds tokens (batch, length) int64; see :meth:`edge_sdk.backends.Engine.step`."""
        assert isinstance(states, OrtStates)
        length = input_ids.shape[1]
        fed = input_ids if self.embeddings is None or input_ids.ndim == 3 else self.embed(input_ids)
        states.make_room(states.past_length + length)
        call = states.call_for(length, {"last": 1, "all": length, "none": 0}[logits])
        call.run(fed, states, states.written)
        states.advance(length)
        return call.logits


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
