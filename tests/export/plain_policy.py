"""A policy's graph on plain ONNX Runtime: no kernels, no bindings, every state copied in and out of each call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime

from edge_sdk.bundle import GRAPH, Bundle
from edge_sdk.policy_spec import NO_TOKEN, OBSERVATION_PREFIX


class PlainPolicy:
    """Steps with caches of the whole context, from zeros."""

    def __init__(self, bundle: Bundle) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(bundle.file(GRAPH)), options)
        self._model, self.past_length = bundle.manifest.model, 0
        specs = self._model.past_specs()
        sizes = {"batch": 1, "capacity": self._model.max_length}
        self._states = {spec.name: np.zeros(spec.sized(**sizes), spec.dtype) for spec in specs}

    def read(self, tokens: list[int]) -> None:
        """An instruction, all of it at once."""
        spec = self._model.policy
        assert spec is not None
        zeros = {
            OBSERVATION_PREFIX + one.name: np.zeros((1, len(tokens), *one.shape), one.dtype)
            for one in spec.schema.observations
        }
        self._run(len(tokens), {**zeros, "input_ids": np.array([tokens])}, kept=0)

    def infer(self, observation: Mapping[str, np.ndarray], committed: Any = None, noise: Any = None) -> np.ndarray:
        """The chunk (chunk_length, action_dim)."""
        fed = {OBSERVATION_PREFIX + name: array[None, None] for name, array in observation.items()}
        return self._run(1, {**fed, "input_ids": np.array([[NO_TOKEN]])}, 1, committed, noise)[0, 0]

    def _run(
        self, length: int, fed: dict[str, np.ndarray], kept: int, committed: Any = None, noise: Any = None
    ) -> np.ndarray:
        spec = self._model.policy
        assert spec is not None
        chunk = np.zeros((1, kept, spec.schema.chunk_length, spec.schema.action_dim), np.float32)
        count = 0 if committed is None else len(committed)
        known = chunk.copy()
        if count:
            known[0, 0, :count] = committed
        inputs = {
            **fed,
            **self._states,
            "past_length": np.array([self.past_length]),
            "action_positions": np.arange(length - kept, length),
            "committed": known,
            "committed_length": np.full((1, kept), count),
            "noise": chunk if noise is None else noise,
        }
        wanted = {one.name for one in self._session.get_inputs()}
        names = [one.name for one in self._session.get_outputs()]
        outputs = self._session.run(None, {name: array for name, array in inputs.items() if name in wanted})
        made = dict(zip(names, outputs))
        self._states = {name: made[name.replace("past_key_values", "present")] for name in self._states}
        self.past_length += length
        return np.asarray(made["actions"])
