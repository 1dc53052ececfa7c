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
from edge_export.pack import export_graph, make_bundle
from edge_export.quantize import pack_int4, quantize, quantize_blocks, unpack_int4
from edge_export.torch_model import HybridLM
from edge_export.torch_ops import dequantize
from edge_export.trace import trace
from edge_sdk.backends.ort import OrtEngine
from edge_sdk.errors import CheckpointError, ConfigError
from places import TEACHER
from tiny import make

LENGTH = 40


class Exported:
    """A model in torch and its bundle in ONNX Runtime, activations kept in float32."""

    def __init__(self, model: HybridLM, weights: str, folder: Path) -> None:
        save_model(model, folder / "checkpoint")
        for name in ("tokenizer.json", "chat_template.jinja"):
            (folder / "checkpoint" / name).write_bytes((TEACHER / name).read_bytes())
        export_graph(folder / "checkpoint", folder / "onnx", weights=weights)  # type: ignore[arg-type]
        self.bundle = make_bundle(folder / "checkpoint", folder / "onnx", folder / "bundle")
        self.engine = OrtEngine(self.bundle, exact=True)
        self.model = (quantize(model) if weights == "int4" else model).eval()

    def expected(self, ids: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self.model(torch.from_numpy(ids))[0].numpy()

    def in_parts(self, ids: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
        states, logits, start = self.engine.empty_states(len(ids)), [], 0
        for length in lengths:
            part, states = self.engine.step(ids[:, start : start + length], states)
            logits.append(part)
            start += length
        assert start == ids.shape[1]
        return np.concatenate(logits, axis=1)


VARIANTS = ("plain", "latent-experts", "expert-groups", "tied")


@pytest.fixture(scope="module", params=[(variant, weights) for variant in VARIANTS for weights in ("float32", "int4")])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    variant, weights = request.param
    return Exported(make(variant), weights, tmp_path_factory.mktemp("exported"))


def token_ids(batch: int, length: int = LENGTH, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 48, (batch, length))


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_prefill_agrees(exported: Exported) -> None:
    for batch, length in ((1, 1), (3, 2), (2, LENGTH), (1, 200)):
        ids = token_ids(batch, length)
        assert_close(exported.in_parts(ids, [length]), exported.expected(ids))


def test_single_steps_agree(exported: Exported) -> None:
    ids = token_ids(2)
    assert_close(exported.in_parts(ids, [1] * LENGTH), exported.expected(ids))


@settings(max_examples=25, deadline=None)
@given(cuts=st.sets(st.integers(1, LENGTH - 1)), batch=st.integers(1, 3), seed=st.integers(0, 2**16))
def test_any_split_agrees(exported: Exported, cuts: set[int], batch: int, seed: int) -> None:
    ids = token_ids(batch, seed=seed)
    edges = [0, *sorted(cuts), LENGTH]
    lengths = [end - start for start, end in itertools.pairwise(edges)]
    assert_close(exported.in_parts(ids, lengths), exported.expected(ids))


def test_the_graph_holds_our_operators_with_their_bodies(exported: Exported) -> None:
    proto = onnx.load(str(exported.bundle.file("model.onnx")))
    onnx.checker.check_model(str(exported.bundle.file("model.onnx")), full_check=True)
    kinds = [spec.kind for spec in exported.model.config.layers]
    nodes = [node.op_type for node in proto.graph.node if node.domain == "edge"]
    assert nodes.count("Mamba2Mixer") == kinds.count("mamba2")
    assert nodes.count("MoE") == kinds.count("moe")
    assert {function.name for function in proto.functions} == set(nodes)
    quantized = "int4" in exported.bundle.manifest.weights
    assert (onnx.TensorProto.INT4 in {tensor.data_type for tensor in proto.graph.initializer}) == quantized
    assert ("QLinear" in nodes) == quantized
    assert {node.domain for node in proto.graph.node} <= {"", "edge"}
    assert {opset.domain: opset.version for opset in proto.opset_import} == {"": 21, "edge": 1}
    assert [value.name for value in proto.graph.input] == [spec.name for spec in exported.model.config.inputs()]


def test_onnx_reference_evaluator_agrees() -> None:
    model = make("plain")
    proto, ids = trace(model), token_ids(1, 9)
    feeds = {spec.name: np.zeros(spec.sized(batch=1, past_length=0), np.float32) for spec in model.config.past_specs()}
    logits, *present = ReferenceEvaluator(proto).run(None, {"input_ids": ids, **feeds})
    with torch.inference_mode():
        expected, states = model(torch.from_numpy(ids))
    assert_close(logits, expected.numpy())
    for found, state in zip(present, states):
        assert_close(found, state.numpy())


def test_int4_answers_as_the_quantised_torch_model(tmp_path: Path) -> None:
    exported = Exported(load_model(TEACHER), "int4", tmp_path)
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
    assert (error <= scales.abs() * 1.0001).all()  # half a step, but a whole one at the range's upper end
    if bits == 4:
        assert torch.equal(unpack_int4(pack_int4(values)), values)


def test_a_block_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="block_size"):
        quantize_blocks(torch.zeros(48, 4), 4, 32)


def test_a_graph_of_another_checkpoint_is_not_bundled(tmp_path: Path) -> None:
    exported = Exported(make("no-experts"), "float32", tmp_path)
    save_model(make("no-experts", seed=1), tmp_path / "checkpoint", tokenizer_from=TEACHER)
    with pytest.raises(CheckpointError, match="another checkpoint"):
        make_bundle(tmp_path / "checkpoint", tmp_path / "onnx", tmp_path / "bundle")
    assert edge_sdk.Bundle.open(exported.bundle.path)
    manifest = json.loads((exported.bundle.path / "manifest.json").read_text())
    assert manifest["weights"] == "float32"
