"""Projections in FP8 and NVFP4 in TensorRT's version of a graph: what they compute, where they are from, what refuses.

Nothing here runs an engine. The graphs are run by ONNX's reference evaluator, which is none of ours.
"""

from __future__ import annotations

import shutil
import tracemalloc
from pathlib import Path

import ml_dtypes
import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto
from onnx.reference import ReferenceEvaluator
from safetensors.torch import load_file

from builds import plugin_library
from edge_export import tensorrt_weights
from edge_export.boards import find_board, formats_for
from edge_export.checkpoint import Checkpoint, load_model
from edge_export.cli import app
from edge_export.engine import EngineRequest, make_engine
from edge_export.families import nemotron_h
from edge_export.float_codes import Format
from edge_export.importing import import_checkpoint
from edge_export.pack import Storage
from edge_export.tensorrt_builder import EngineBuilder
from edge_export.tensorrt_graph import ACTIVATIONS, write_tensorrt_graph
from edge_export.torch_model import HybridLM
from edge_sdk import Bundle
from edge_sdk.engine_files import Precision, read_records
from edge_sdk.errors import BackendError, ConfigError
from exported import TinyBundle, bundle_of
from test_tensorrt_graph import STORAGES, fed, run, written
from tiny import BASE

CHECKPOINTS = Path(__file__).parent / "checkpoints"
FORMATS: tuple[Format, ...] = ("fp8", "nvfp4")

TOLERANCES = {"float16": 4e-3, "bfloat16": 4e-2}
"""Of logits, relative to the largest."""


@pytest.fixture(scope="module", params=[("fp8", "float32"), ("nvfp4", "bfloat16")], ids=str)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    """A checkpoint that Model Optimizer wrote, and the bundle of what was imported from it as bfloat16."""
    kind, weights = request.param
    folder = tmp_path_factory.mktemp(kind)
    import_checkpoint(CHECKPOINTS / f"modelopt-{kind}", folder / "imported", "bfloat16")
    storage = Storage(weights=weights, cache_dtype="float32")
    return CHECKPOINTS / f"modelopt-{kind}", bundle_of(load_model(folder / "imported"), storage, folder)


def format_of(checkpoint: Path) -> Format:
    return "fp8" if checkpoint.name.endswith("fp8") else "nvfp4"


def codes_of(proto: ModelProto, folder: Path) -> dict[str, np.ndarray]:
    """The bytes of a graph's codes and scales, by initialiser."""
    made = (tensor for tensor in proto.graph.initializer if ".fp8" in tensor.name or ".nvfp4" in tensor.name)
    found = {}
    for tensor in made:
        where = {entry.key: entry.value for entry in tensor.external_data}
        content = (folder / where["location"]).read_bytes()[int(where["offset"]) :]
        found[tensor.name] = np.frombuffer(content[: int(where["length"])], np.uint8)
    return found


def test_codes_and_scales_are_those_that_model_optimizer_wrote(published: tuple[Path, Bundle], tmp_path: Path) -> None:
    checkpoint, bundle = published
    kind = format_of(checkpoint)
    stored = load_file(checkpoint / "model.safetensors")
    proto, summary = written(bundle, tmp_path / "graph", "bfloat16", ACTIVATIONS, (kind,))
    assert (summary.projections, summary.kept) == ({kind: 10}, 10)
    found = codes_of(proto, tmp_path / "graph")
    endings = {"fp8": {"": "", "_scale": "_scale"}, "nvfp4": {"": "", "_scales": "_scale", "_scale": "_scale_2"}}[kind]
    assert len(found) == 10 * len(endings)
    for name, content in found.items():
        weight, _, ending = name.partition(f".{kind}")
        theirs = stored[weight.replace("model.", "backbone.", 1) + endings[ending]]
        np.testing.assert_array_equal(content, theirs.reshape(-1).view(torch.uint8).numpy())


def test_logits_are_those_of_the_checkpoint_before_it_was_rounded(
    published: tuple[Path, Bundle], tmp_path: Path
) -> None:
    checkpoint, bundle = published
    written(bundle, tmp_path / "graph", "float32", (), (format_of(checkpoint),))
    model: HybridLM = load_model(bundle.path.parent / "checkpoint")
    original = Checkpoint(checkpoint)
    projections = {name: weight for name, weight in model.named_parameters() if "_proj." in name}
    assert not all(torch.equal(weight, original.tensor(name)) for name, weight in projections.items())
    for name, weight in projections.items():
        weight.data = original.tensor(name)
    feeds = fed(bundle)
    (found,) = ReferenceEvaluator(str(tmp_path / "graph" / "model.onnx")).run(["logits"], feeds)
    with torch.no_grad():
        expected = model(torch.from_numpy(feeds["input_ids"]))[:, feeds["logit_positions"]].numpy()
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_lossless_leaves_each_weight_the_format_that_it_had(tmp_path: Path) -> None:
    """A checkpoint as NVIDIA's are: some layers NVFP4, some FP8, some never quantised."""
    import_checkpoint(CHECKPOINTS / "modelopt-nvfp4", tmp_path / "imported", "bfloat16")
    model = load_model(tmp_path / "imported")
    layers = model.state_dict()
    fp8 = Checkpoint(CHECKPOINTS / "modelopt-fp8")
    for name in ("in_proj", "out_proj"):
        layers[f"layers.0.mixer.{name}.weight"].copy_(fp8.tensor(f"layers.0.mixer.{name}.weight").bfloat16())
    layers["layers.2.mixer.o_proj.weight"].add_(torch.linspace(0, 1e-3, 32))
    bundle = bundle_of(model, Storage(weights="bfloat16", cache_dtype="float32"), tmp_path)
    summary = write_tensorrt_graph(bundle.path, None, "float16", ACTIVATIONS, ("nvfp4", "fp8"), lossless=True)
    assert (summary.projections, summary.kept) == ({"fp8": 2, "nvfp4": 7}, 9)
    summary = write_tensorrt_graph(bundle.path, None, "float16", ACTIVATIONS, ("fp8",), lossless=True)
    assert (summary.projections, summary.kept) == ({"fp8": 2}, 2)


def decoded(codes: dict[str, np.ndarray], weight: str, shape: tuple[int, ...]) -> np.ndarray:
    """A weight (out, in) by ml_dtypes' casts."""
    if f"{weight}.fp8" in codes:
        values = codes[f"{weight}.fp8"].view(ml_dtypes.float8_e4m3fn).astype(np.float32).reshape(shape)
        scale = codes[f"{weight}.fp8_scale"].view(np.float32)
        return values * scale[:, None]
    packed = codes[f"{weight}.nvfp4"]
    halves = np.stack([packed & 15, packed >> 4], -1).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    scales = codes[f"{weight}.nvfp4_scales"].view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    return (halves.reshape(-1, 16) * (scales * codes[f"{weight}.nvfp4_scale"].view(np.float32))[:, None]).reshape(shape)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_graph_computes_with_the_dequantised_weights(tiny_bundle: TinyBundle, kind: Format, tmp_path: Path) -> None:
    bundle = tiny_bundle(*STORAGES["float32"])
    proto, summary = written(bundle, tmp_path / "graph", "float32", (), (kind,))
    assert set(summary.projections) == {kind}
    assert summary.kept == 0
    (found,) = ReferenceEvaluator(str(tmp_path / "graph" / "model.onnx")).run(["logits"], fed(bundle))
    codes = codes_of(proto, tmp_path / "graph")
    original = onnx.load(str(bundle.file("model.onnx")))
    names = {name.partition(f".{kind}")[0] for name in codes}
    for tensor in original.graph.initializer:
        if tensor.name in names:
            tensor.raw_data = decoded(codes, tensor.name, tuple(tensor.dims)).tobytes()
    onnx.save(original, str(tmp_path / "dequantised.onnx"))
    expected = run(tmp_path / "dequantised.onnx", bundle)["logits"]
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("precision", TOLERANCES)
def test_products_in_the_engines_precision_are_as_near_as_without(
    published: tuple[Path, Bundle], precision: Precision, tmp_path: Path
) -> None:
    checkpoint, bundle = published
    logits = {}
    for each in ("float32", precision):
        written(bundle, tmp_path / each, each, (), (format_of(checkpoint),))
        (logits[each],) = ReferenceEvaluator(str(tmp_path / each / "model.onnx")).run(["logits"], fed(bundle))
    error = np.abs(logits[precision] - logits["float32"]).max() / np.abs(logits["float32"]).max()
    assert 0 < error < TOLERANCES[precision]


@pytest.mark.parametrize("kind", FORMATS)
def test_what_else_multiplies_stays_as_it_is(tiny_bundle: TinyBundle, kind: Format, tmp_path: Path) -> None:
    bundle = tiny_bundle(*STORAGES["float32"])
    plain, _ = written(bundle, tmp_path / "plain", "float16", ACTIVATIONS)
    proto, summary = written(bundle, tmp_path / "graph", "float16", ACTIVATIONS, (kind,))
    before, after = ({node.name: node for node in each.graph.node} for each in (plain, proto))
    changed = {name for name, node in before.items() if after.get(name) != node}
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    assert len([name for name in changed if before[name].op_type == "MatMul"]) == summary.projections[kind]
    assert not any(before[name].op_type in ACTIVATIONS for name in changed)
    assert weights["model.lm_head.weight.float16"].data_type == TensorProto.FLOAT16
    opset = {each.domain: each.version for each in proto.opset_import}
    assert opset[""] == (21 if kind == "fp8" else 23)


@pytest.mark.parametrize("kind", FORMATS)
def test_integers_are_not_quantised_again(tiny_bundle: TinyBundle, kind: Format, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=rf"in_proj\.weight.*: expected a float one: {kind} of what is rounded already .*found int4"
    ):
        write_tensorrt_graph(tiny_bundle(*STORAGES["int4"]).path, tmp_path, "float16", ACTIVATIONS, (kind,))


def test_inputs_that_blocks_do_not_fill_are_refused(tiny_bundle: TinyBundle, tmp_path: Path) -> None:
    copy = Bundle.open(shutil.copytree(tiny_bundle(*STORAGES["float32"]).path, tmp_path / "bundle"))
    proto = onnx.load(str(copy.file("model.onnx")), load_external_data=False)
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name.endswith("in_proj.weight"))
    weight.dims[1] -= 4
    copy.file("model.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ConfigError, match=r"in_proj\.weight: expected inputs in whole blocks of 16.*found 60.*fp8"):
        write_tensorrt_graph(copy.path, tmp_path, "float16", ACTIVATIONS, ("nvfp4",))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_weight_too_large_for_float16_is_refused(tiny_bundle: TinyBundle, kind: Format, tmp_path: Path) -> None:
    copy = Bundle.open(shutil.copytree(tiny_bundle(*STORAGES["float32"]).path, tmp_path / "bundle"))
    proto = onnx.load(str(copy.file("model.onnx")))
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name.endswith("in_proj.weight"))
    values = onnx.numpy_helper.to_array(weight).copy()
    values[3, 5] = 1e5
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    copy.file("model.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ConfigError, match=r"float16 holds, found 100000\.0.*bfloat16"):
        write_tensorrt_graph(copy.path, None, "float16", (), (kind,))
    assert write_tensorrt_graph(copy.path, None, "bfloat16", (), (kind,)).projections


@pytest.mark.parametrize(
    ("board", "kinds"),
    [
        ("orin-nx-16gb", ()),
        ("rtx-3060", ()),
        ("rtx-4090", ("fp8",)),
        ("thor-t5000", ("nvfp4", "fp8")),
        ("rtx-5090", ("nvfp4", "fp8")),
    ],
)
def test_boards_have_what_their_gpus_have(board: str, kinds: tuple[str, ...]) -> None:
    found = find_board(board, "tensorrt")
    assert formats_for(found, "plain") == ()
    for wanted, formats in (("lossless", kinds), *((kind, (kind,) if kind in kinds else ()) for kind in FORMATS)):
        if formats:
            assert formats_for(found, wanted) == formats
        else:
            with pytest.raises(
                ConfigError, match=rf"--projections {wanted} for {board}: .* capability .*--weights int4"
            ):
                formats_for(found, wanted)


@pytest.fixture(scope="module")
def rtx() -> object:
    """The module, where PyPI has it for this machine."""
    return pytest.importorskip("tensorrt_rtx", reason="PyPI's tensorrt-rtx-cu13 is not installed")


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize(
    ("board", "kind", "plugins"),
    [("rtx-4090", "fp8", "library"), ("rtx-5090", "nvfp4", "library"), ("rtx-5090", "nvfp4", "none")],
)
def test_engines_are_built_with_them(published: tuple[Path, Bundle], board: str, kind: Format, plugins: str) -> None:
    _, bundle = published
    library = "none" if plugins == "none" else str(plugin_library())
    request = EngineRequest(backend="tensorrt-rtx", board=board, projections=kind, plugins=library)
    record = make_engine(bundle.path, msgspec.structs.replace(request, max_prefill=16, max_context=32))
    assert record is not None
    assert record in read_records(bundle)
    assert record.key.projections == kind
    assert f"-float16-{kind}-" in record.file
    assert set(record.key.plugins) == (set() if plugins == "none" else {"Mamba2Mixer", "MoE", "CachedAttention"})


def test_the_command_says_what_becomes_of_them(
    published: tuple[Path, Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, bundle = published
    for kind in FORMATS:
        command = ["engine", str(bundle.path), "--board", "thor-t5000", "--projections", kind, "--dry-run"]
        app(command, standalone_mode=False)
        kept = 10 if kind == format_of(checkpoint) else 0
        assert f"10 in {kind}; {kept} of them without loss" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"--projections: expected one of plain, lossless, fp8, nvfp4, found int4"):
        app(["engine", str(bundle.path), "--projections", "int4"], standalone_mode=False)


def build(trt: object, bundle: Bundle, folder: Path, capability: str, formats: tuple[Format, ...]) -> int:
    """Bytes of an engine."""
    folder.mkdir()
    write_tensorrt_graph(bundle.path, folder, "float16", (), formats)
    builder = EngineBuilder(trt, "tensorrt-rtx", capability)
    builder.parse(folder / "model.onnx")
    builder.add_profiles(bundle.manifest.model, EngineRequest(max_prefill=16, max_context=32).limits(bundle))
    return memoryview(builder.build()).nbytes


@pytest.mark.parametrize(("capability", "kind", "missing"), [("8.6", "fp8", "fp8_e4m3"), ("8.9", "nvfp4", "fp4_e2m1")])
def test_tensorrt_itself_refuses_them_for_older_gpus(
    tiny_bundle: TinyBundle, rtx: object, tmp_path: Path, capability: str, kind: Format, missing: str
) -> None:
    with pytest.raises(BackendError, match=f"HW-specific datatypes: .*{missing}"):
        build(rtx, tiny_bundle(*STORAGES["float32"]), tmp_path / "graph", capability, (kind,))


def test_engines_hold_the_codes_and_not_what_they_stand_for(rtx: object, tmp_path: Path) -> None:
    """Kernels differ in size too, so the layer is so wide that its weights outweigh them."""
    wide = {"layers_block_type": ["linear_attention", "mlp"], "hidden_size": 1024, "intermediate_size": 4096}
    model = HybridLM(nemotron_h.parse_config(BASE | wide))
    model.reset_parameters(0)
    bundle = bundle_of(model, Storage(weights="bfloat16"), tmp_path)
    values = 2 * 1024 * 4096
    plain = build(rtx, bundle, tmp_path / "plain", "12.0", ())
    fp8, nvfp4 = (build(rtx, bundle, tmp_path / kind, "12.0", (kind,)) for kind in FORMATS)
    assert plain - fp8 > 0.9 * values
    assert fp8 - nvfp4 > 0.9 * (1 - 9 / 16) * values


@pytest.mark.parametrize("kind", FORMATS)
def test_memory_does_not_grow_with_the_weight(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_weights, "BLOCK", 1 << 20)
    peaks = []
    for out in (2048, 8192):
        np.random.default_rng(0).standard_normal((out, 1024), np.float32).tofile(tmp_path / "weights")
        tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=(out, 1024), data_location="EXTERNAL")
        for key, value in (("location", "weights"), ("offset", 0)):
            tensor.external_data.add(key=key, value=str(value))
        with tensorrt_weights.Weights([tensor], tmp_path, None) as weights:
            tracemalloc.start()
            getattr(weights, kind)("w", True, TensorProto.FLOAT16)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] - peaks[0] < 0.05 * 4 * (8192 - 2048) * 1024
