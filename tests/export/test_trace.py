"""The traced graph against the torch model it came from: prefill, single steps, any split, both precisions."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

import edge_sdk
from edge_export.checkpoint import load_model, save_model
from edge_export.evaluate import TorchEngine
from edge_export.pack import Storage, export_graph, make_bundle
from edge_export.quantize import pack_int4, quantize_blocks, unpack_int4
from edge_export.torch_model import HybridLM
from edge_export.torch_ops import dequantize
from edge_sdk.backends import Engine
from edge_sdk.backends.ort import OrtEngine
from edge_sdk.errors import CheckpointError, ConfigError
from exported import TinyBundle, bundle_of
from places import TEACHER
from tiny import make

LENGTH = 40


class Exported:
    """A model in torch and its bundle in ONNX Runtime, activations kept in float32."""

    def __init__(self, model: HybridLM, storage: Storage, bundle: edge_sdk.Bundle) -> None:
        self.bundle = bundle
        self.engine = OrtEngine(self.bundle, exact=True)
        self.model = storage.apply(model).eval()

    def expected(self, ids: np.ndarray) -> np.ndarray:
        """Logits (batch, length, vocab) of one step of the torch model over all tokens."""
        return logits_in_parts(TorchEngine(self.model), ids, [ids.shape[1]])

    def in_parts(self, ids: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
        return logits_in_parts(self.engine, ids, lengths)


def logits_in_parts(engine: Engine, ids: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    states, logits, start = engine.empty_states(len(ids)), [], 0
    for length in lengths:
        logits.append(engine.step(ids[:, start : start + length], states, logits="all").copy())
        start += length
    assert start == ids.shape[1]
    assert (states.past_length == start).all()
    return np.concatenate(logits, axis=1)


STORAGES = {
    f"{variant}-{weights}": (variant, Storage(weights=weights, cache_dtype="float32"))
    for variant in ("plain", "latent-experts", "expert-groups", "tied")
    for weights in ("float32", "int4")
} | {
    "plain-bfloat16": ("plain", Storage(weights="bfloat16", cache_dtype="float32")),
    "tied-bfloat16": ("tied", Storage(weights="bfloat16", cache_dtype="float32")),
    "projection-bias-int8": ("projection-bias", Storage(weights="int8", cache_dtype="float32")),
    "plain-int4-head4": ("plain", Storage(weights="int4", head_bits=4, cache_dtype="float32")),
    "plain-half-states": ("plain", Storage(cache_dtype="float16", state_dtype="float16")),
    "many-queries-per-key-int8-cache": ("many-queries-per-key", Storage(cache_dtype="int8")),
    "only-mamba": ("only-mamba", Storage()),
}
"""A model, and how its graph stores it; float32 caches where nothing else is said of them."""

TOLERANCES = {"float32": 1e-4, "float16": 2e-3, "int8": 2e-2}
"""Of logits, relative to the largest. Sums of another order may round a state to the neighbouring value."""


@pytest.fixture(scope="module", params=STORAGES)
def exported(request: pytest.FixtureRequest, tiny_bundle: TinyBundle) -> Exported:
    variant, storage = STORAGES[request.param]
    return Exported(make(variant), storage, tiny_bundle(variant, storage))


def token_ids(batch: int, length: int = LENGTH, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 48, (batch, length))


def assert_close(found: np.ndarray, expected: np.ndarray, dtype: str = "float32") -> None:
    assert found.shape == expected.shape
    assert np.abs(found.astype(np.float32) - expected).max() <= TOLERANCES[dtype] * np.abs(expected).max()


def test_prefill_agrees(exported: Exported) -> None:
    for batch, length in ((1, 1), (3, 2), (2, LENGTH), (1, 200)):
        ids = token_ids(batch, length)
        assert_close(exported.in_parts(ids, [length]), exported.expected(ids), exported.model.config.cache_dtype)


def test_single_steps_agree(exported: Exported) -> None:
    ids = token_ids(2)
    assert_close(exported.in_parts(ids, [1] * LENGTH), exported.expected(ids), exported.model.config.cache_dtype)


@settings(max_examples=10, deadline=None)
@given(cuts=st.sets(st.integers(1, LENGTH - 1)), batch=st.integers(1, 3), seed=st.integers(0, 2**16))
def test_any_split_agrees(exported: Exported, cuts: set[int], batch: int, seed: int) -> None:
    ids = token_ids(batch, seed=seed)
    edges = [0, *sorted(cuts), LENGTH]
    lengths = [end - start for start, end in itertools.pairwise(edges)]
    assert_close(exported.in_parts(ids, lengths), exported.expected(ids), exported.model.config.cache_dtype)


def test_without_states_the_torch_model_says_the_same(exported: Exported) -> None:
    ids = token_ids(2)
    with torch.inference_mode():
        whole = exported.model(torch.from_numpy(ids)).numpy()
    assert_close(whole, exported.expected(ids), exported.model.config.cache_dtype)


def test_only_the_wanted_logits_are_returned(exported: Exported) -> None:
    ids = token_ids(3)
    states = exported.engine.empty_states(3)
    assert exported.engine.step(ids[:, :-2], states, logits="none").shape == (3, 0, 48)
    last = exported.engine.step(ids[:, -2:], states, logits="last")
    assert_close(last, exported.expected(ids)[:, -1:], exported.model.config.cache_dtype)


def test_the_graph_holds_our_operators_with_their_bodies(exported: Exported) -> None:
    proto = onnx.load(str(exported.bundle.file("model.onnx")))
    onnx.checker.check_model(str(exported.bundle.file("model.onnx")), full_check=True)
    kinds = [spec.kind for spec in exported.model.config.layers]
    nodes = [node.op_type for node in proto.graph.node if node.domain == "edge"]
    assert nodes.count("Mamba2Mixer") == kinds.count("mamba2")
    assert nodes.count("MoE") == kinds.count("moe")
    assert nodes.count("CachedAttention") == kinds.count("attention")
    assert {function.name for function in proto.functions} == set(nodes)
    weights = exported.bundle.manifest.weights
    stored = {tensor.data_type for tensor in proto.graph.initializer}
    assert (onnx.TensorProto.INT4 in stored) == ("int4" in weights)
    assert (onnx.TensorProto.INT8 in stored) == ("int" in weights and "head4" not in weights)
    assert (onnx.TensorProto.BFLOAT16 in stored) == ("float32" not in weights)
    assert ("QLinear" in nodes) == ("float32" not in weights)
    assert {node.domain for node in proto.graph.node} <= {"", "edge"}
    assert {opset.domain: opset.version for opset in proto.opset_import} == {"": 21, "edge": 1}
    assert [value.name for value in proto.graph.input] == [spec.name for spec in exported.model.config.inputs()]


@pytest.mark.parametrize("cache_dtype", ["float32", "float16", "int8"])
def test_onnx_reference_evaluator_agrees(cache_dtype: str, tmp_path: Path) -> None:
    storage = Storage(cache_dtype=cache_dtype)  # type: ignore[arg-type]
    model = storage.apply(make("plain"))
    save_model(make("plain"), tmp_path / "checkpoint")
    export_graph(tmp_path / "checkpoint", tmp_path / "onnx", storage)
    ids, sizes = token_ids(2, 9), {"batch": 2, "capacity": 12}
    feeds = {spec.name: np.zeros(spec.sized(**sizes), spec.dtype) for spec in model.config.past_specs()}
    feeds |= {"input_ids": ids, "past_length": np.zeros(2, np.int64), "logit_positions": np.array([0, 8])}
    logits, *present = ReferenceEvaluator(str(tmp_path / "onnx" / "model.onnx")).run(None, feeds)
    with torch.inference_mode():
        tokens, past, kept = (torch.from_numpy(feeds[name]) for name in ("input_ids", "past_length", "logit_positions"))
        expected, states = model.step(tokens, past, kept, model.empty_states(**sizes))
    assert_close(logits, expected.numpy(), cache_dtype)
    for found, state in zip(present, states):
        assert_close(found, state.numpy(), cache_dtype)


def test_int4_answers_as_the_quantised_torch_model(tmp_path: Path) -> None:
    storage = Storage(weights="int4", cache_dtype="float32")
    exported = Exported(load_model(TEACHER), storage, bundle_of(load_model(TEACHER), storage, tmp_path))
    ids = np.random.default_rng(0).integers(5, 24, (2, LENGTH))
    assert_close(exported.in_parts(ids, [LENGTH]), exported.expected(ids))
    assert exported.bundle.total_bytes() < 0.5 * sum(path.stat().st_size for path in TEACHER.glob("*.safetensors"))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**16), bits=st.sampled_from([4, 8]), blocks=st.integers(1, 3), out=st.integers(1, 5))
def test_quantisation_rounds_to_the_nearest_step(seed: int, bits: int, blocks: int, out: int) -> None:
    weight = torch.randn(32 * blocks, 2 * out, generator=torch.Generator().manual_seed(seed))
    weight[:32, 0] = 0.0
    values, scales = quantize_blocks(weight, bits, 32)
    assert values.int().min() >= -(2 ** (bits - 1))
    assert values.int().max() < 2 ** (bits - 1)
    error = (dequantize(values, scales, 32) - weight).abs().view(blocks, 32, -1).amax(1)
    assert torch.equal(scales, scales.half().float())
    # half a step, but a whole one at the range's upper end, and there what rounding the scale adds
    assert (error <= scales.abs() * (1.0001 + 2 ** (bits - 12))).all()
    if bits == 4:
        assert torch.equal(unpack_int4(pack_int4(values)), values)


@pytest.mark.parametrize("factor", [1e-12, 1e7])
def test_scales_that_float16_cannot_hold_stay_as_they_are(factor: float) -> None:
    weight = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)) * factor
    values, scales = quantize_blocks(weight, 8, 32)
    error = (dequantize(values, scales, 32) - weight).abs().view(2, 32, -1).amax(1)
    assert (error <= scales.abs() * 1.0001).all()


@pytest.mark.parametrize(
    ("width", "block_size", "todo"),
    [(48, 32, "multiples of 32"), (96, 64, "Choose 32."), (1024, 512, "Choose 32 or 64 or 128 or 256.")],
)
def test_a_block_size_that_does_not_divide_or_is_too_large_is_refused(width: int, block_size: int, todo: str) -> None:
    with pytest.raises(ConfigError, match=f"block_size.*{todo}"):
        quantize_blocks(torch.zeros(width, 4), 4, block_size)


def test_a_graph_of_another_checkpoint_is_not_bundled(tmp_path: Path) -> None:
    bundle = bundle_of(make("no-experts"), Storage(), tmp_path)
    save_model(make("no-experts", seed=1), tmp_path / "checkpoint", tokenizer_from=TEACHER)
    with pytest.raises(CheckpointError, match="another checkpoint"):
        make_bundle(tmp_path / "checkpoint", tmp_path / "onnx", tmp_path / "bundle")
    assert edge_sdk.Bundle.open(bundle.path)
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    assert manifest["weights"] == "float32"
