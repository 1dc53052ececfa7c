"""TensorRT: runs an engine that `edge-export engine` built for this GPU. Has never run on one (docs/tensorrt.md)."""

from __future__ import annotations

import logging
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.backends import FIRST_CAPACITY, Engine, Snapshot, States, Wanted, capacity_for, used
from edge_sdk.backends.cuda import Cuda, DeviceMemory, Graph, HostArray
from edge_sdk.backends.trt_layout import Call, Copy, Layout, calls, growth, state_addresses
from edge_sdk.backends.trt_module import import_tensorrt, installed_library, load_plugins, logger_of
from edge_sdk.bundle import Bundle
from edge_sdk.engine_files import (
    DECODE,
    NEXT_TOKEN,
    PREFILL,
    REBUILD,
    Backend,
    Device,
    EngineRecord,
    choose_record,
    engine_path,
    graph_id,
    read_records,
)
from edge_sdk.errors import BackendError, explain
from edge_sdk.machine import read_gpus

log = logging.getLogger("edge_sdk")


class TrtStates(States):
    """The states in one piece of device memory that every step overwrites, and the decode step over them as a graph."""

    def __init__(self, engine: TrtEngine, batch: int, capacity: int) -> None:
        super().__init__(batch, capacity)
        self.engine = engine
        self._allocate()

    def _allocate(self) -> None:
        self.layout = Layout(self.engine.config.past_specs(), len(self.past_length), self.capacity)
        self.memory = DeviceMemory(self.engine.cuda, self.layout.offsets()[-1])
        self.decoded = False
        """Whether a decode step ran over this memory, as TensorRT wants it before a capture."""
        self.graph: Graph | None = None

    def grow(self, capacity: int) -> None:
        """Moves everything into a larger memory."""
        layout, memory, used = self.layout, self.memory, int(self.past_length.max())
        self.capacity = capacity
        self._allocate()
        for copy in growth(layout, self.layout, used):
            self.engine.cuda.copy(memory, self.memory, copy)
        self.engine.cuda.synchronize()  # before the old memory is freed

    def copy(self) -> TrtStates:
        """Another memory with the same content."""
        other = TrtStates(self.engine, len(self.past_length), self.capacity)
        other.past_length[:] = self.past_length
        size = self.memory.size
        self.engine.cuda.copy(self.memory, other.memory, Copy(0, 0, 1, size, size, size))
        return other

    def snapshot(self) -> Snapshot:
        """See :meth:`edge_sdk.backends.States.snapshot`."""
        cuda, (length,) = self.engine.cuda, self.past_length
        host = HostArray(cuda, self.memory.size, "uint8")
        cuda.download(host, self.memory.address, self.memory.size)
        cuda.synchronize()
        content = used(self.layout.specs, self.layout.arrays(host.array), int(length))
        return Snapshot(int(length), tuple(np.array(array) for array in content))

    def load(self, snapshot: Snapshot) -> None:
        """Takes on a snapshot's content, for which there must be room."""
        cuda, host = self.engine.cuda, HostArray(self.engine.cuda, self.memory.size, "uint8")
        host.array[:] = 0
        content = used(self.layout.specs, self.layout.arrays(host.array), snapshot.length)
        for array, part in zip(content, snapshot.arrays):
            array[...] = part
        cuda.upload(self.memory.address, host, self.memory.size)
        cuda.synchronize()
        self.past_length[:] = snapshot.length


class _Buffers:
    """Inputs and outputs of one call, on the device and in page-locked memory. Their addresses never change."""

    def __init__(self, cuda: Cuda, record: EngineRecord, vocab: int) -> None:
        limits = record.key.limits
        sizes = {
            "input_ids": (limits.batch * limits.prefill, "int64"),
            "past_length": (limits.batch, "int64"),
            "logit_positions": (limits.kept, "int64"),
            "logits": (limits.batch * limits.kept * vocab, "float32"),
            NEXT_TOKEN: (limits.batch * limits.kept, "int64"),
        }
        self.host = {name: HostArray(cuda, count, dtype) for name, (count, dtype) in sizes.items()}
        self.device = {name: DeviceMemory(cuda, host.array.nbytes) for name, host in self.host.items()}


class TrtEngine(Engine):
    """A TensorRT engine with two contexts, one per profile, in one stream and one scratch memory."""

    def __init__(self, bundle: Bundle) -> None:
        """Raises BackendError where there is no engine for this GPU, TensorRT and plugins, or it does not load."""
        self.config = bundle.manifest.model
        self.record = find_record(bundle)
        key = self.record.key
        self.limits, self.prefill_block = key.limits, key.limits.prefill
        self.max_length = min(key.limits.context, self.config.max_length)
        operators = f"{len(key.plugins)} kinds of plugins" if key.plugins else "function bodies"
        self.name = (
            f"{key.backend} {key.version} on {key.gpu or key.compute_capability}, {key.number_types}, {operators}"
        )
        self.cuda = Cuda()
        trt = import_tensorrt(key.backend)
        self._runtime, self._engine = _deserialize(trt, engine_path(bundle, self.record))
        sizes = [self._engine.get_device_memory_size_for_profile_v2(profile) for profile in (DECODE, PREFILL)]
        self._scratch = DeviceMemory(self.cuda, max(sizes))
        self._contexts = [self._context(trt, profile) for profile in (DECODE, PREFILL)]
        self._bound: list[tuple[int, ...]] = [(), ()]
        self._captures = True
        """Whether a decode step can be captured, as far as is known."""
        self._buffers = _Buffers(self.cuda, self.record, self.config.vocab_size)

    def _context(self, trt: Any, profile: int) -> Any:
        context = self._engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        context.set_device_memory(self._scratch.address, self._scratch.size)
        context.set_optimization_profile_async(profile, int(self.cuda.stream))
        self.cuda.synchronize()
        return context

    def empty_states(self, batch: int) -> TrtStates:
        """Zeros. Raises BackendError where the engine was built for fewer rows."""
        if batch > self.limits.batch:
            raise BackendError(
                explain("batch", expected=f"at most {self.limits.batch}", found=batch, todo=f"{REBUILD} (--batch)")
            )
        return TrtStates(self, batch, min(FIRST_CAPACITY, self.max_length))

    def load_states(self, snapshot: Snapshot) -> TrtStates:
        """See :meth:`edge_sdk.backends.Engine.load_states`."""
        capacity = capacity_for(snapshot.length, min(FIRST_CAPACITY, self.max_length), self.max_length)
        states = TrtStates(self, 1, capacity)
        states.load(snapshot)
        return states

    def step(self, input_ids: np.ndarray, states: States, logits: Wanted = "last") -> np.ndarray:
        """Feeds tokens (batch, length) int64; see :meth:`edge_sdk.backends.Engine.step`."""
        batch, length = input_ids.shape
        made = calls(length, logits, self.limits)
        parts: list[np.ndarray] = []
        for call in self._feed(input_ids, states, made):
            if logits == "all" or (logits == "last" and call is made[-1]):
                part = self._read("logits", batch * call.kept * self.config.vocab_size)
                part = part.reshape(batch, call.kept, -1)
                parts.append(part.copy() if len(made) > 1 else part)
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts, axis=1) if parts else np.empty((batch, 0, self.config.vocab_size), np.float32)

    def next_tokens(self, input_ids: np.ndarray, states: States) -> np.ndarray:
        """As :meth:`edge_sdk.backends.Engine.next_tokens`; of the logits nothing leaves the GPU."""
        for _ in self._feed(input_ids, states, calls(input_ids.shape[1], "last", self.limits)):
            pass
        tokens: np.ndarray = self._read(NEXT_TOKEN, len(input_ids)).copy()
        return tokens

    def _feed(self, input_ids: np.ndarray, states: States, made: list[Call]) -> Iterator[Call]:
        """Makes the calls one after the other, and hands over each while its outputs are still on the device."""
        assert isinstance(states, TrtStates)
        needed = int(states.past_length.max()) + input_ids.shape[1]
        if needed > states.capacity:
            states.grow(capacity_for(needed, states.capacity, self.max_length))
        for call in made:
            self._run(input_ids[:, call.start : call.end], states, call)
            states.past_length += call.end - call.start
            yield call

    def _run(self, input_ids: np.ndarray, states: TrtStates, call: Call) -> None:
        """Puts one call into the stream: decoding, from the second step on, as the states' graph."""
        host, (batch, length) = self._buffers.host, input_ids.shape
        self.cuda.synchronize()  # the page-locked inputs may still be read by the call before
        host["input_ids"].array[: input_ids.size] = input_ids.ravel()
        host["past_length"].array[:batch] = states.past_length
        host["logit_positions"].array[: call.kept] = np.arange(length - call.kept, length)
        if states.graph is None or call.profile != DECODE:
            self._bind(states, call, batch, length)
            if call.profile == DECODE and states.decoded and self._captures:
                states.graph = self._capture(call, batch)
            if states.graph is None or call.profile != DECODE:
                self._enqueue(call, batch, length)
                states.decoded |= call.profile == DECODE
                return
        states.graph.launch()

    def _capture(self, call: Call, batch: int) -> Graph | None:
        """A decode step as a graph, or None where the engine does what no graph can hold."""
        try:
            return self.cuda.capture(lambda: self._enqueue(call, batch, 1))
        except BackendError as error:
            log.warning("decoding goes on without a CUDA graph, slower: %s", error)
            self._captures = False
            return None

    def _bind(self, states: TrtStates, call: Call, batch: int, length: int) -> None:
        """Tells the call's context shapes and addresses, where they are not those of its last call."""
        bound = (int(states.memory.address), states.capacity, batch, length, call.kept)
        if self._bound[call.profile] == bound:
            return
        context, sizes = self._contexts[call.profile], {"batch": batch, "length": length, "kept": call.kept}
        for spec in self.config.inputs():
            context.set_input_shape(spec.name, spec.sized(capacity=states.capacity, **sizes))
        addresses = {name: memory.address for name, memory in self._buffers.device.items()}
        addresses |= state_addresses(self.config, states.layout, states.memory.address)
        for name, address in addresses.items():
            context.set_tensor_address(name, int(address))
        self._bound[call.profile] = bound

    def _enqueue(self, call: Call, batch: int, length: int) -> None:
        """Puts the inputs' copies and the engine's run into the stream."""
        buffers, item = self._buffers, np.dtype(np.int64).itemsize
        counts = {"input_ids": batch * length, "past_length": batch, "logit_positions": call.kept}
        for name, count in counts.items():
            if count:
                self.cuda.upload(buffers.device[name].address, buffers.host[name], count * item)
        if not self._contexts[call.profile].execute_async_v3(int(self.cuda.stream)):
            raise BackendError(
                explain(self.record.file, expected="a step", found=self._runtime.logger.said(), todo=REBUILD)
            )

    def _read(self, name: str, count: int) -> np.ndarray:
        """The first ``count`` values of an output, on the host; the next call overwrites them."""
        host = self._buffers.host[name]
        self.cuda.download(host, self._buffers.device[name].address, count * host.array.itemsize)
        self.cuda.synchronize()
        values: np.ndarray = host.array[:count]
        return values


def find_record(bundle: Bundle) -> EngineRecord:
    """The engine of a bundle that runs here. Raises BackendError, with every reason, where there is none."""
    records = read_records(bundle)
    if not records:
        raise BackendError(explain("The bundle's engines", expected="one for this GPU", found="none", todo=REBUILD))
    gpus, missing = read_gpus()
    if not gpus:
        raise BackendError(explain("TensorRT", expected="a GPU", found=missing, todo="Use --device cpu."))
    versions: dict[str, str] = {}
    plugins: dict[str, dict[str, str]] = {}
    for backend in {record.key.backend for record in records}:
        needed = any(record.key.plugins for record in records if record.key.backend == backend)
        _probe(backend, needed, versions, plugins)
    device = Device(compute_capability=gpus[0].compute_capability, gpu=gpus[0].name, versions=versions, plugins=plugins)
    return choose_record(records, device, graph_id(bundle))


def _probe(backend: Backend, needs_plugins: bool, versions: dict[str, str], plugins: dict[str, dict[str, str]]) -> None:
    """Notes a backend's version and its plugins; what is missing is a reason that the choice of an engine names."""
    try:
        trt = import_tensorrt(backend)
        versions[backend] = trt.__version__
        plugins[backend] = load_plugins(trt, installed_library() if needs_plugins else None)
    except BackendError as error:
        log.warning("%s", error)


def _deserialize(trt: Any, path: Path) -> tuple[Any, Any]:
    """The runtime, which keeps what TensorRT says, and the engine of a file."""
    logger = logger_of(trt)
    runtime = trt.Runtime(logger)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise BackendError(
            explain(str(path), expected="an engine for this GPU", found=logger.said() or "another", todo=REBUILD)
        )
    return runtime, engine
