"""Drives TensorRT's builder: profiles, parser errors with their nodes, progress, timing cache, interruption."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID

from edge_export.terminal import console, interruptible
from edge_sdk.backends import FIRST_CAPACITY
from edge_sdk.backends.trt_module import logger_of
from edge_sdk.engine_files import Backend, Limits
from edge_sdk.errors import BackendError, explain
from edge_sdk.model import ModelConfig

Range = tuple[int, int, int]
"""The least, the usual and the largest size of an axis."""


def profile_ranges(limits: Limits) -> tuple[dict[str, Range], dict[str, Range]]:
    """The dynamic axes' sizes in an engine's two profiles, DECODE and PREFILL.

    Prefill begins at 2 tokens, since one token is decode, and may keep no logits at all.
    """
    shared = {
        "batch": (1, 1, limits.batch),
        "capacity": (min(FIRST_CAPACITY, limits.context), limits.context, limits.context),
    }
    decode = {"length": (1, 1, 1), "kept": (1, 1, 1)}
    prefill = {"length": (2, limits.prefill, limits.prefill), "kept": (0, 1, limits.kept)}
    return shared | decode, shared | prefill


class EngineBuilder:
    """One use of TensorRT's builder, on a module that was imported and has its plugins."""

    def __init__(self, trt: Any, backend: Backend, compute_capability: str) -> None:
        """Raises BackendError where TensorRT finds no GPU and needs one."""
        self.trt = trt
        self.log = logger_of(trt)
        try:
            self.builder = trt.Builder(self.log)
        except TypeError:  # what pybind11 makes of a null pointer
            raise self._error("A TensorRT builder", "a GPU that it can use", "Run this on the board.") from None
        self.config = self.builder.create_builder_config()
        # Products that stay in float32, such as the routers', are meant to have its precision.
        self.config.clear_flag(trt.BuilderFlag.TF32)
        if backend == "tensorrt-rtx":
            name = f"SM{compute_capability.replace('.', '')}"
            self.config.num_compute_capabilities = 1
            self.config.set_compute_capability(getattr(trt.ComputeCapability, name), 0)

    def parse(self, graph: Path) -> None:
        """Reads a graph. Raises BackendError with the parser's errors and the nodes they are about."""
        trt = self.trt
        self.network = self.builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        self._parser = trt.OnnxParser(self.network, self.log)  # owns the weights until the engine is built
        if not self._parser.parse_from_file(str(graph)):
            errors = [self._parser.get_error(index) for index in range(self._parser.num_errors)]
            said = "; ".join(f"{error.desc()} (node {error.node_name()}, {error.node_operator()})" for error in errors)
            raise BackendError(
                explain(
                    f"TensorRT {trt.__version__}'s parser",
                    expected="a graph of operators that it knows",
                    found=said or self.log.said(),
                    todo="Use a plugin library that has them, or --plugins none and --qlinear tensorrt.",
                )
            )

    def add_profiles(self, model: ModelConfig, limits: Limits) -> None:
        """The two profiles, DECODE and PREFILL."""
        for ranges in profile_ranges(limits):
            profile = self.builder.create_optimization_profile()
            for spec in model.inputs():
                shapes = (spec.sized(**{axis: sizes[at] for axis, sizes in ranges.items()}) for at in range(3))
                profile.set_shape(spec.name, *shapes)
            self.config.add_optimization_profile(profile)

    def use_timing_cache(self, content: bytes) -> None:
        """Goes on from another build's timings; those of another GPU or TensorRT are passed over."""
        for attempt in (content, b""):
            if self.config.set_timing_cache(self.config.create_timing_cache(attempt), ignore_mismatch=False):
                return

    def timing_cache(self) -> bytes:
        """The timings after a build."""
        return bytes(memoryview(self.config.get_timing_cache().serialize()))

    def build(self) -> Any:
        """The serialised engine, as a buffer.

        Raises KeyboardInterrupt after SIGINT, and BackendError with what TensorRT said where it fails.
        """
        shown = Progress(console=console, transient=True, disable=not console.is_terminal)
        with shown as progress, interruptible() as interrupted:
            self.config.progress_monitor = _monitor(self.trt, progress, interrupted)
            engine = self.builder.build_serialized_network(self.network, self.config)
        if interrupted():
            raise KeyboardInterrupt
        if engine is None:
            raise self._error("The engine", "one that TensorRT builds", "Build with smaller limits or --plugins none.")
        return engine

    def _error(self, what: str, expected: str, todo: str) -> BackendError:
        return BackendError(explain(what, expected=expected, found=self.log.said() or "none", todo=todo))


def _monitor(trt: Any, progress: Progress, interrupted: Callable[[], bool]) -> Any:
    """TensorRT's phases as rich's bars, each under its parent; an interruption stops the build at the next step."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.tasks: dict[str, tuple[TaskID, int]] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            depth = self.tasks[parent_phase][1] + 1 if parent_phase in self.tasks else 0
            self.tasks[phase_name] = progress.add_task("  " * depth + phase_name, total=num_steps), depth

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress.update(self.tasks[phase_name][0], completed=step + 1)
            return not interrupted()

        def phase_finish(self, phase_name: str) -> None:
            progress.remove_task(self.tasks.pop(phase_name)[0])

    return Monitor()
