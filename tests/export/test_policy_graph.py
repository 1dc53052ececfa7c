"""A policy's graph in ONNX Runtime against its torch model and against what the interface promises."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from edge_export.families import policy
from edge_export.pack import Storage
from edge_export.policy_layers import Normalizer, PixelNormalizer
from edge_export.torch_policy import HybridPolicy
from edge_plugins import native_library
from edge_sdk import Bundle
from edge_sdk.control.normalization import STATS, Mode, Normalization
from edge_sdk.control.policy import PolicyConfig
from edge_sdk.errors import BundleError, CheckpointError, ConfigError
from edge_sdk.model import ModelConfig
from edge_sdk.policy_spec import NO_TOKEN, DecoderSpec, EncoderSpec
from policies import CAMERA, MLP, RANGE, VECTOR, bundle_of, make_policy, raw_config, schema

Arrays = dict[str, np.ndarray]

BATCH, LENGTH, CAPACITY, CHUNK = 2, 7, 12, 6
PREFIX = [1, 2]
"""Positions of each row's instruction."""

TOLERANCE = 2e-5
"""Of actions, relative to the largest: sums of another order."""

VARIANTS = {
    "regression": {"head": "regression", "observations": (VECTOR, RANGE)},
    "flow_matching": {"head": "flow_matching", "observations": (CAMERA, VECTOR), "instruction": True},
}


class Traced:
    """A policy in torch, and its graph."""

    def __init__(self, name: str, folder: Path, storage: Storage) -> None:
        variant = dict(VARIANTS[name])
        described = schema(str(variant.pop("head")), variant.pop("observations"))
        self.model: HybridPolicy = make_policy(described, **variant)
        self.bundle = bundle_of(self.model, folder, storage)
        self.config = self.bundle.manifest.model
        self.stored = storage.apply(make_policy(described, **variant)).eval()

    @functools.cache  # noqa: B019  # a session for the whole module
    def session(self, kernels: bool) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        if kernels:
            library = native_library()
            if library is None:
                pytest.skip("no native kernels are installed")
            options.add_session_config_entry("edge.exact", "1")
            options.register_custom_ops_library(str(library))
        return onnxruntime.InferenceSession(str(self.bundle.file("model.onnx")), options)

    def run(self, fed: Mapping[str, np.ndarray], kernels: bool = False) -> Arrays:
        found = self.session(kernels).run(None, dict(fed))
        return dict(zip((spec.name for spec in self.config.outputs()), found))

    @torch.no_grad()
    def torch(self, fed: Mapping[str, np.ndarray]) -> Arrays:
        tensors = {name: torch.from_numpy(values) for name, values in fed.items()}
        states = tuple(tensors.pop(spec.name) for spec in self.config.past_specs())
        actions, present = self.stored.step(tensors, states)
        names = (spec.name for spec in self.config.outputs())
        return {name: values.numpy() for name, values in zip(names, (actions, *present))}

    def feed(self, seed: int = 0, positions: tuple[int, ...] = (4, 6), committed: int = 2) -> Arrays:
        """Random inputs of whole rows from nothing."""
        rng, kept, fed = np.random.default_rng(seed), len(positions), {}
        for spec in self.config.inputs():
            shape = spec.sized(batch=BATCH, length=LENGTH, kept=kept, capacity=CAPACITY)
            if spec.name.startswith("past"):
                fed[spec.name] = np.zeros(shape, spec.dtype)
            elif spec.dtype == "uint8":
                fed[spec.name] = rng.integers(0, 256, shape, dtype=np.uint8)
            else:
                fed[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
        fed["action_positions"] = np.array(positions, dtype=np.int64)
        fed["committed_length"] = np.full((BATCH, kept), committed, dtype=np.int64)
        if "input_ids" in fed:
            fed["input_ids"] = np.tile(np.array([*PREFIX, *[NO_TOKEN] * (LENGTH - len(PREFIX))]), (BATCH, 1))
        return fed

    def by_position(self, fed: Arrays, lengths: list[int], kernels: bool) -> Arrays:
        """The same in several calls, from state to state; actions of the wanted positions in their order."""
        states = {name: values for name, values in fed.items() if name.startswith("past_key")}
        start, actions, found = 0, [], {}
        for length in lengths:
            part = {
                name: values[:, start : start + length]
                for name, values in fed.items()
                if name.startswith("observation.") or name == "input_ids"
            }
            inside = [p for p, at in enumerate(fed["action_positions"]) if start <= at < start + length]
            part["action_positions"] = fed["action_positions"][inside] - start
            part |= {name: fed[name][:, inside] for name in ("committed", "committed_length", "noise") if name in fed}
            part["past_length"] = np.full(BATCH, start, dtype=np.int64)
            found = self.run(part | states, kernels)
            states = {name.replace("present", "past_key_values"): found[name] for name in found if name != "actions"}
            actions.append(found["actions"])
            start += length
        return found | {"actions": np.concatenate(actions, axis=1)}


@pytest.fixture(scope="module", params=VARIANTS)
def traced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Traced:
    return Traced(request.param, tmp_path_factory.mktemp(request.param), Storage(cache_dtype="float32"))


def assert_close(found: Arrays, expected: Arrays, tolerance: float = TOLERANCE) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].shape == values.shape
        assert np.abs(found[name] - values).max(initial=0) <= tolerance * max(1, np.abs(values).max(initial=0)), name


@pytest.mark.parametrize("kernels", [False, True], ids=["function-bodies", "native-kernels"])
def test_the_graph_agrees_with_torch(traced: Traced, kernels: bool) -> None:
    for positions, committed in (((2, 6), 0), ((6,), 3), (tuple(range(2, 7)), CHUNK), ((), 0)):
        fed = traced.feed(positions=positions, committed=committed)
        fed["past_length"][:] = 0
        assert_close(traced.run(fed, kernels), traced.torch(fed))


@pytest.mark.parametrize("kernels", [False, True], ids=["function-bodies", "native-kernels"])
@pytest.mark.parametrize("lengths", [[1] * LENGTH, [2, 5], [6, 1]], ids=str)
def test_any_split_of_an_episode_is_the_same(traced: Traced, lengths: list[int], kernels: bool) -> None:
    fed = traced.feed(positions=(2, 4, 6))
    fed["past_length"][:] = 0
    found = traced.by_position(fed, lengths, kernels)
    assert_close(found, traced.run(fed, kernels), tolerance=1e-4)


def test_steps_are_what_training_computes(traced: Traced) -> None:
    fed = traced.feed(positions=(2, 3, 6), committed=0)
    fed["past_length"][:] = 0
    observations = [torch.from_numpy(fed[f"observation.{spec.name}"]) for spec in traced.model.spec.schema.observations]
    ids = torch.from_numpy(fed["input_ids"]) if "input_ids" in fed else None
    with torch.no_grad():
        conditions = traced.model(observations, ids)[:, [2, 3, 6]]
        rest = [torch.from_numpy(fed[name]) if name in fed else None for name in ("committed_length", "noise")]
        expected = traced.model.act(conditions, torch.from_numpy(fed["committed"]), *rest)
    assert_close({"actions": traced.run(fed)["actions"]}, {"actions": expected.numpy()})


def test_the_reference_evaluator_agrees(traced: Traced) -> None:
    fed = traced.feed(positions=(6,))
    fed["past_length"][:] = 0
    reference = ReferenceEvaluator(str(traced.bundle.file("model.onnx")))
    found = dict(zip((spec.name for spec in traced.config.outputs()), reference.run(None, fed)))
    assert_close(found, traced.run(fed))


@pytest.mark.parametrize("traced", ["flow_matching"], indirect=True)
def test_an_instruction_and_an_image_matter(traced: Traced) -> None:
    fed = traced.feed()
    fed["past_length"][:] = 0
    first = traced.run(fed)["actions"]
    other = dict(fed)
    other["input_ids"] = fed["input_ids"].copy()
    other["input_ids"][0, 0] = 3
    assert np.abs(traced.run(other)["actions"] - first)[0].max() > 1e-3
    np.testing.assert_array_equal(traced.run(other)["actions"][1], first[1])
    ignored = dict(fed)
    ignored["observation.state"] = fed["observation.state"].copy()
    ignored["observation.state"][:, : len(PREFIX)] = 100.0  # where tokens stand
    np.testing.assert_array_equal(traced.run(ignored)["actions"], first)
    picture = dict(fed)
    picture["observation.images.front"] = 255 - fed["observation.images.front"]
    assert np.abs(traced.run(picture)["actions"] - first).max() > 1e-3


def test_committed_actions_come_back_as_they_are_and_what_is_behind_them_does_not_matter(traced: Traced) -> None:
    lengths = np.array([[0, 2], [CHUNK, 5]])
    fed = traced.feed() | {"committed_length": lengths}
    fed["past_length"][:] = 0
    found = traced.run(fed)["actions"]
    counted = np.arange(CHUNK) < lengths[..., None]
    np.testing.assert_array_equal(found[counted], fed["committed"][counted])
    assert not np.isclose(found, fed["committed"])[~counted].any()
    spoilt = fed | {"committed": np.where(counted[..., None], fed["committed"], np.float32(np.nan))}
    np.testing.assert_array_equal(traced.run(spoilt)["actions"], found)


def test_committed_actions_bear_on_the_others_continuously(traced: Traced) -> None:
    fed = traced.feed(committed=3)
    fed["past_length"][:] = 0
    first = traced.run(fed)["actions"]
    moves = []
    for size in (1e-1, 1e-2, 1e-3):
        nudged = fed["committed"].copy()
        nudged[:, :, 2, 0] += size
        moves.append(np.abs(traced.run(fed | {"committed": nudged})["actions"] - first)[:, :, 3:].max())
    assert moves[0] > 1e-4
    assert moves[1] == pytest.approx(moves[0] / 10, rel=0.3)
    assert moves[2] == pytest.approx(moves[0] / 100, rel=0.3)
    fewer = traced.run(fed | {"committed_length": np.full((BATCH, 2), 2)})["actions"]
    assert np.abs(fewer - first)[:, :, 3:].max() > 1e-4


def test_noise_moves_actions_with_flow_matching_alone(traced: Traced) -> None:
    fed = traced.feed(committed=0)
    assert ("noise" in fed) == (traced.config.policy.schema.head == "flow_matching")
    if "noise" in fed:
        fed["past_length"][:] = 0
        assert np.abs(traced.run(fed)["actions"] - traced.run(fed | {"noise": -fed["noise"]})["actions"]).min() > 0


numbers = st.floats(-100, 100, width=32)


@settings(max_examples=60, deadline=None)
@given(
    mode=st.sampled_from(list(STATS)),
    first=st.lists(numbers, min_size=3, max_size=3),
    widths=st.lists(st.floats(2**-6, 50, width=32), min_size=3, max_size=3),
    values=st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=1, max_size=4),
)
def test_normalisation_is_that_of_the_control_loop(
    mode: Mode, first: list[float], widths: list[float], values: list[list[float]]
) -> None:
    second = widths if mode == "MEAN_STD" else [low + width for low, width in zip(first, widths)]
    stats = {name: tuple(part) for name, part in zip(STATS[mode], (first, second))}
    normalization, physical = Normalization(mode=mode, stats=stats), np.array(values, dtype=np.float32)
    ours, theirs = Normalizer([(normalization, 3)]), normalization.scaling()
    np.testing.assert_array_equal(ours(torch.from_numpy(physical)).numpy(), theirs.normalize(physical))
    expected = theirs.unnormalize(physical)
    np.testing.assert_allclose(ours.undo(torch.from_numpy(physical)).numpy(), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("item", [CAMERA, msgspec.structs.replace(CAMERA, normalization=Normalization())])
def test_pixels_are_divided_by_255_and_normalised(item: object) -> None:
    pixels = np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)
    expected = item.normalization.scaling().normalize(pixels / np.float32(255))
    found = PixelNormalizer(item.normalization, 3)(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_parts_that_stand_side_by_side_keep_their_own_normalisation() -> None:
    both = Normalizer([(VECTOR.normalization, 3), (RANGE.normalization, 2)])
    values = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    parts = (VECTOR.normalization, values[:, :3]), (RANGE.normalization, values[:, 3:])
    expected = np.concatenate([kind.scaling().normalize(part) for kind, part in parts], axis=1)
    np.testing.assert_array_equal(both(torch.from_numpy(values)).numpy(), expected)


def test_an_int8_bundle_is_near_the_float_one(traced: Traced, tmp_path: Path) -> None:
    small = Traced(traced.config.policy.schema.head, tmp_path, Storage(weights="int8", cache_dtype="float32"))
    fed = traced.feed(positions=(2, 6), committed=0)
    fed["past_length"][:] = 0
    assert_close(small.run(fed), small.torch(fed), tolerance=1e-4)
    expected, found = traced.run(fed)["actions"], small.run(fed)["actions"]
    spread = expected.std()
    assert 0 < np.abs(found - expected).max() < 0.05 * max(spread, np.abs(expected).max())
    graph = onnx.load(str(small.bundle.file("model.onnx")), load_external_data=False)
    kinds = {tensor.data_type for tensor in graph.graph.initializer if ".decoder." in tensor.name}
    assert kinds == {onnx.TensorProto.FLOAT}
    body = [tensor for tensor in graph.graph.initializer if tensor.name.startswith("model.layers.")]
    assert any(tensor.data_type == onnx.TensorProto.INT8 for tensor in body)
    assert sum(entry.bytes for entry in small.bundle.manifest.files.values()) < traced.bundle.total_bytes()


def test_a_bundle_holds_its_schema_and_a_tokenizer_only_for_instructions(traced: Traced, tmp_path: Path) -> None:
    spec = traced.config.policy
    assert PolicyConfig.read(traced.bundle.file("policy.json")) == spec.schema
    assert ("tokenizer.json" in traced.bundle.manifest.files) == spec.instruction
    assert "chat_template.jinja" not in traced.bundle.manifest.files
    assert Bundle.open(traced.bundle.path).manifest.inputs == traced.config.inputs()


def test_another_schema_is_refused(traced: Traced, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(traced.bundle.path, copy)
    changed = msgspec.structs.replace(traced.config.policy.schema, budget_ms=1.0)
    changed.write(copy / "policy.json")
    with pytest.raises(BundleError, match=r"policy\.json"):
        Bundle.open(copy)
    manifest = msgspec.json.decode((copy / "manifest.json").read_bytes())
    manifest["files"]["policy.json"]["bytes"] = (copy / "policy.json").stat().st_size
    (copy / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    with pytest.raises(BundleError, match="the schema that"):
        Bundle.open(copy, verify_hashes=False)


def test_a_step_has_few_nodes(traced: Traced) -> None:
    """Per position of the graph: a flow step may add no more than its blocks; see docs/policies.md."""
    graph = onnx.load(str(traced.bundle.file("model.onnx")), load_external_data=False).graph
    assert len(graph.node) <= {"regression": 165, "flow_matching": 355}[traced.config.policy.schema.head]


def test_a_description_comes_back_from_its_config(traced: Traced) -> None:
    raw = policy.format_config(traced.model.config)
    assert policy.parse_config(msgspec.json.decode(msgspec.json.encode(raw))) == traced.model.config
    assert traced.model.config.parameters() == sum(part.numel() for part in traced.model.parameters())


WRONG = {
    "no policy": {"policy": None},
    "a vocabulary without an instruction": {"vocab_size": 8},
    "a mistyped setting": {"hiden": 64},
    "a mistyped setting of a layer": {"layers": [MLP | {"intermedate": 3}]},
    "an unknown kind of layer": {"layers": [{"type": "lstm"}]},
    "no layers": {"layers": []},
    "a drafting head": {"mtp": {"layers": [MLP]}},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_description_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        policy.parse_config(raw_config(schema()) | WRONG[name])


def test_sizes_that_make_no_sense_are_refused() -> None:
    for wrong in ({"layers": 0}, {"flow_steps": 0}, {"heads": -1}):
        with pytest.raises(ConfigError, match="DecoderSpec"):
            DecoderSpec(**wrong)
    for wrong in ({"width": -1}, {"channels": ()}, {"kernel": 2}):
        with pytest.raises(ConfigError, match="EncoderSpec"):
            EncoderSpec(**wrong)
    config: ModelConfig = policy.parse_config(raw_config(schema(), encoder={"width": 0}, decoder={}))
    assert config.policy.encoder.width == 0
