"""The custom-op library in ONNX Runtime: who runs, in whose memory, with which settings, and what is refused."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edge_plugins import DOMAIN, OPERATORS, OPSET_VERSION, native_library
from edge_plugins.operator import STANDARD_OPSET

MAMBA = next(case for case in OPERATORS["Mamba2Mixer"].make_cases() if case.inputs["proj"].shape[1] > 1)
STATES = ("past_conv", "past_ssm")
RNG = np.random.default_rng(0)
WEIGHT = RNG.integers(-128, 128, (64, 40)).astype(np.int8)
SCALES = RNG.uniform(0.01, 0.1, (2, 40)).astype(np.float32)
X = RNG.standard_normal((3, 5, 64), dtype=np.float32)
EXPECTED = X.astype(np.float64) @ (WEIGHT * np.repeat(SCALES.astype(np.float64), 32, axis=0))
LEAST_ISA = "neon" if platform.machine() == "aarch64" else "baseline"
"""The kernels that every processor of this kind can run."""


def model_of(
    operator: str,
    arrays: dict[str, np.ndarray],
    fed: Sequence[str],
    attributes: dict[str, Any],
    shapes: dict[str, list[Any]] | None = None,
) -> ModelProto:
    """One node with its function; what is not fed is a constant, and outputs have no shape of their own."""
    description = OPERATORS[operator]
    node = helper.make_node(operator, list(arrays), description.outputs, name="the_node", domain=DOMAIN, **attributes)
    inputs = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(arrays[name].dtype), (shapes or {}).get(name)
        )
        for name in fed
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in description.outputs]
    constants = [numpy_helper.from_array(array, name) for name, array in arrays.items() if name not in fed]
    graph = helper.make_graph([node], "test", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", STANDARD_OPSET), helper.make_opsetid(DOMAIN, OPSET_VERSION)]
    return helper.make_model(graph, opset_imports=opsets, functions=[description.function("")], ir_version=10)


def linear_model(fed: Sequence[str] = ("x",), **replaced: np.ndarray) -> ModelProto:
    arrays = {"x": X, "weight": WEIGHT, "scales": SCALES} | replaced
    return model_of("QLinear", arrays, fed, {"block_size": 32})


def mamba_model(**shapes: list[Any]) -> ModelProto:
    arrays = {name: MAMBA.inputs[name] for name in OPERATORS["Mamba2Mixer"].inputs}
    return model_of("Mamba2Mixer", arrays, ("proj", *STATES), dict(MAMBA.attributes), shapes)


def options_of(**settings: object) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    for name, value in settings.items():
        options.add_session_config_entry(f"edge.{name}", str(value))
    options.register_custom_ops_library(str(native_library()))
    return options


def session_of(model: ModelProto, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def linear(session: onnxruntime.InferenceSession) -> np.ndarray:
    return session.run(None, {"x": X})[0]


def test_the_kernel_wins_over_the_function(tmp_path: Path) -> None:
    options = options_of()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = session_of(linear_model(), options)
    linear(session)
    events = json.loads(Path(session.end_profiling()).read_text())
    assert {event["args"]["op_name"] for event in events if event["cat"] == "Node"} == {"QLinear"}


def test_states_bound_to_one_memory_are_written_in_place() -> None:
    session = session_of(mamba_model(), options_of())
    feeds = {name: MAMBA.inputs[name] for name in ("proj", *STATES)}
    expected = session.run(None, feeds)
    buffers = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array.copy()) for name, array in feeds.items()}
    binding = session.io_binding()
    for name, value in buffers.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_output("y")
    for name in STATES:
        binding.bind_ortvalue_output(name.replace("past", "present"), buffers[name])
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], expected[0])
    for name, want in zip(STATES, expected[1:]):
        np.testing.assert_array_equal(buffers[name].numpy(), want)


def test_shapes_are_handed_on_so_that_what_follows_can_be_fused() -> None:
    conv, ssm = (list(MAMBA.inputs[name].shape) for name in STATES)
    width = MAMBA.inputs["proj"].shape[2]
    session = session_of(
        mamba_model(proj=["b", "t", width], past_conv=["b", *conv[1:]], past_ssm=["b", *ssm[1:]]), options_of()
    )
    inner = MAMBA.inputs["norm_weight"].size
    found = [value.shape for value in session.get_outputs()]
    assert found == [["b", "t", inner], ["b", *conv[1:]], ["b", *ssm[1:]]]


def test_sessions_with_other_settings_live_side_by_side() -> None:
    exact, rounded = (session_of(linear_model(), options_of(exact=flag)) for flag in (1, 0))
    least = session_of(linear_model(), options_of(exact=1, isa=LEAST_ISA))
    scale = np.abs(EXPECTED).max()
    for _ in range(2):
        assert np.abs(linear(exact) - EXPECTED).max() < 1e-5 * scale
        assert np.abs(linear(least) - EXPECTED).max() < 1e-5 * scale
        assert 1e-5 * scale < np.abs(linear(rounded) - EXPECTED).max() < 2e-2 * scale


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_do_not_depend_on_the_number_of_threads(threads: int) -> None:
    options = options_of()
    options.intra_op_num_threads = threads
    np.testing.assert_array_equal(
        linear(session_of(linear_model(), options)), linear(session_of(linear_model(), options_of()))
    )


def test_a_weight_that_is_not_constant_is_refused() -> None:
    with pytest.raises(
        Exception, match="The input weight: expected a constant, which is packed once, found a computed"
    ):
        session_of(linear_model(("x", "weight")), options_of())


def test_a_weight_that_cannot_be_packed_is_refused() -> None:
    with pytest.raises(Exception, match="The input weight: expected a matrix that can be packed"):
        session_of(linear_model(weight=WEIGHT[:48], scales=SCALES[:1]), options_of())
    with pytest.raises(Exception, match=r"The shape of scales: expected \(2, 40\), found \(1, 40\)"):
        session_of(linear_model(scales=SCALES[:1]), options_of())


def test_inputs_of_a_wrong_shape_are_refused_in_the_run_and_harm_nothing() -> None:
    session = session_of(linear_model(), options_of(exact=1))
    with pytest.raises(Exception, match="The last axis of x: expected 64"):
        session.run(None, {"x": X[..., :32]})
    assert np.abs(linear(session) - EXPECTED).max() < 1e-4
    feeds = {name: MAMBA.inputs[name] for name in ("proj", *STATES)}
    with pytest.raises(Exception, match="The shape of past_ssm"):
        session_of(mamba_model(), options_of()).run(None, feeds | {"past_ssm": feeds["past_ssm"][:, :1]})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"isa": "abacus"}, f"expected one of auto, .*{LEAST_ISA}.*, found 'abacus'"),
        ({"exact": "yes"}, "edge.exact: expected 0 or 1, found 'yes'"),
        ({"packed_weights": "/tmp/x"}, "edge.packed_key: expected a text"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(Exception, match=message):
        options_of(**settings)


def test_packed_weights_are_kept_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    settings = {"exact": 1, "packed_weights": path, "packed_key": "one"}
    session = session_of(linear_model(), options_of(**settings))
    assert not path.exists()  # not before all kernels are made
    first = linear(session)
    assert [path] == list(tmp_path.iterdir())
    before = path.stat()
    other = WEIGHT[::-1].copy()  # the file must win over the model's own weight, which proves that it is read
    np.testing.assert_array_equal(linear(session_of(linear_model(weight=other), options_of(**settings))), first)
    assert path.stat().st_ino == before.st_ino
    changed = linear(session_of(linear_model(weight=other), options_of(**settings | {"packed_key": "two"})))
    assert np.abs(changed - first).max() > 1
    assert path.stat().st_ino != before.st_ino
    np.testing.assert_array_equal(linear(session), first)  # the first session still has the old file


def test_two_sessions_of_the_same_options_share_the_file(tmp_path: Path) -> None:
    options = options_of(packed_weights=tmp_path / "weights", packed_key="one")
    sessions = [session_of(linear_model(), options) for _ in range(2)]
    np.testing.assert_array_equal(linear(sessions[1]), linear(sessions[0]))
    assert len(list(tmp_path.iterdir())) == 1


def test_a_session_that_never_runs_leaves_no_file(tmp_path: Path) -> None:
    session = session_of(linear_model(), options_of(packed_weights=tmp_path / "weights", packed_key="one"))
    del session
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_costs_one_warning(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "no such folder" / "weights"
    session = session_of(linear_model(), options_of(exact=1, packed_weights=path, packed_key="one"))
    for _ in range(2):
        assert np.abs(linear(session) - EXPECTED).max() < 1e-4
    assert capfd.readouterr().err.count("The packed weights stay in memory") == 1
