"""ONNX Runtime on the CPU: runs any bundle, on the operators' function bodies where no kernels are installed."""

from __future__ import annotations

import logging

import numpy as np

from edge_sdk.backends import States
from edge_sdk.bundle import GRAPH, Bundle
from edge_sdk.errors import BackendError, explain

log = logging.getLogger("edge_sdk")


class OrtEngine:
    """An ONNX Runtime session over the bundle's graph; states stay in its own memory between steps."""

    def __init__(self, bundle: Bundle, *, threads: int | None = None, exact: bool = False) -> None:
        """``exact`` keeps activations in float32 where int4 products would round them to int8.

        Raises BackendError when onnxruntime is not installed or refuses the graph.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise BackendError(
                explain("The CPU engine", expected="onnxruntime", found=error, todo="pip install 'edge-sdk[cpu]'")
            ) from None
        self._ort_value = onnxruntime.OrtValue.ortvalue_from_numpy
        self.name = f"onnxruntime {onnxruntime.__version__} on the CPU"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1" if exact else "4")
        if threads is not None:
            options.intra_op_num_threads = threads
        log.info("no native kernels are installed: the edge operators run on their ONNX function bodies")
        try:
            self._session = onnxruntime.InferenceSession(
                str(bundle.file(GRAPH)), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise BackendError(
                explain(str(bundle.file(GRAPH)), expected="a graph that loads", found=error, todo="Export it again.")
            ) from error
        self._past = bundle.manifest.model.past_specs()
        self._outputs = [spec.name for spec in bundle.manifest.outputs]

    def empty_states(self, batch: int) -> States:
        """Zeros; attention caches of no positions."""
        return [
            self._ort_value(np.zeros(spec.sized(batch=batch, past_length=0), dtype=spec.dtype)) for spec in self._past
        ]

    def step(self, input_ids: np.ndarray, states: States) -> tuple[np.ndarray, States]:
        """Feeds tokens (batch, length) int64; returns logits (batch, length, vocab) and the new states."""
        feeds = {spec.name: state for spec, state in zip(self._past, states)}
        feeds["input_ids"] = self._ort_value(np.ascontiguousarray(input_ids, dtype=np.int64))
        logits, *present = self._session.run_with_ort_values(self._outputs, feeds)
        return logits.numpy(), present
