"""A bundle's version and its acceptance vectors, of every kind of model, and what they find."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from edge_export.episode_folder import write_episodes
from edge_export.episodes import Episode
from edge_export.pack import Storage, make_bundle
from edge_sdk.bundle import GRAPH, MANIFEST, WEIGHTS, Bundle
from edge_sdk.control.normalization import Normalization
from edge_sdk.control.policy import PolicyConfig
from edge_sdk.deploy.acceptance import ACCEPTANCE, add_acceptance, check
from edge_sdk.deploy.record import version_of
from edge_sdk.deploy.vectors import STEPS, logits_error
from edge_sdk.errors import ConfigError, DeployError
from edge_sdk.files import sha256
from exported import bundle_of
from plain_policy import PlainPolicy
from policies import ATTENTION, CAMERA, MAMBA, MLP, RANGE, VECTOR, make_policy, policy_bundle, schema
from policies import bundle_of as policy_bundle_of
from tiny import make


def test_a_bundle_is_exported_with_a_version_and_vectors(tmp_path: Path) -> None:
    model = make("plain")
    plain = bundle_of(model, Storage(cache_dtype="float32"), tmp_path)
    assert version_of(plain.manifest) == "0"
    paths = tmp_path / "checkpoint", tmp_path / "onnx", tmp_path / "bundle"
    with pytest.raises(ConfigError, match="A version"):
        make_bundle(*paths, version="next")
    bundle = make_bundle(*paths, version="1.4", acceptance=True)
    assert version_of(bundle.manifest) == "1.4"
    assert check(bundle, device="cpu").error < 1e-4
    with np.load(bundle.file(ACCEPTANCE)) as arrays, torch.inference_mode():
        expected = model(torch.from_numpy(arrays["input_ids"])).numpy()[:, -STEPS:]
        assert logits_error(arrays["logits"], expected) < 1e-4
    assert bundle.model_id == plain.model_id


@pytest.fixture(scope="module")
def accepted(sighted: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Bundles with vectors: of a model that sees, and of policies of both heads."""
    folder = tmp_path_factory.mktemp("accepted")
    shutil.copytree(sighted / "bundle", folder / "sighted", ignore=shutil.ignore_patterns("engines"))
    described = schema("regression", (VECTOR, CAMERA, RANGE))
    policy_bundle_of(make_policy(described, instruction=True, layers=[MAMBA, MLP, ATTENTION]), folder / "regression")
    policy_bundle(folder / "flow", "flow_matching", layers=[MAMBA, MLP])
    found = {name: folder / name / "bundle" for name in ("regression", "flow")} | {"sighted": folder / "sighted"}
    return {name: add_acceptance(path) for name, path in found.items()}


KINDS = ("sighted", "regression", "flow")


def rehashed(folder: Path) -> Bundle:
    """The bundle with a manifest that fits its files, as one who alters it would write."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for name in manifest["files"]:
        manifest["files"][name] = {"sha256": sha256(folder / name), "bytes": (folder / name).stat().st_size}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return Bundle.open(folder)


def weights(bundle: Bundle) -> dict[str, tuple[int, int]]:
    """Offset and length of each float weight, of all graphs, with 256 numbers or more."""
    found = {}
    for name in (GRAPH, *bundle.manifest.graphs):
        for tensor in onnx.load(str(bundle.file(name)), load_external_data=False).graph.initializer:
            where = {item.key: item.value for item in tensor.external_data}
            if where and tensor.data_type == onnx.TensorProto.FLOAT and int(where["length"]) >= 1024:
                found[tensor.name] = (int(where.get("offset", 0)), int(where["length"]))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_check_passes_where_the_bundle_was_exported(accepted: dict[str, Bundle], kind: str) -> None:
    measured = check(accepted[kind], device="cpu")
    assert measured.error < 1e-4
    assert measured.step_ms > 0


@pytest.mark.parametrize("kind", KINDS)
def test_an_altered_tensor_is_found(accepted: dict[str, Bundle], kind: str, tmp_path: Path) -> None:
    """The signs of a tensor's second half of values turned, every third large tensor in its turn.

    Those that tell a flow the time are left out: in a random network it makes little difference.
    """
    names = [name for name in sorted(weights(accepted[kind])) if "time_" not in name][::3]
    assert len(names) >= 3
    for number, name in enumerate(names):
        bad = Path(shutil.copytree(accepted[kind].path, tmp_path / str(number)))
        offset, length = weights(accepted[kind])[name]
        values = np.memmap(bad / WEIGHTS, dtype=np.float32, mode="r+", offset=offset, shape=length // 4)
        values[len(values) // 2 :] *= -1
        values.flush()
        with pytest.raises(DeployError, match=r"expected (logits|actions) within 0.1 .*found an error of"):
            check(rehashed(bad), device="cpu", step_budget_ms=1e4)


def test_a_policy_has_its_own_budget_unless_the_board_has_another(tmp_path: Path) -> None:
    described = PolicyConfig(
        observations=(VECTOR, RANGE), action=schema().action, chunk_length=6, budget_ms=1e-3, head="regression"
    )
    bundle = policy_bundle_of(make_policy(described, layers=[MAMBA]), tmp_path)
    add_acceptance(bundle.path)
    with pytest.raises(DeployError, match=r"expected a step within 0.001 ms, found .* ms"):
        check(Bundle.open(bundle.path), device="cpu")
    assert check(Bundle.open(bundle.path), device="cpu", step_budget_ms=1e4).error < 1e-4


def episodes(folder: Path, described: PolicyConfig, lengths: tuple[int, ...]) -> list[Episode]:
    """A folder of random ones."""
    rng = np.random.default_rng(0)
    made = []
    for length in lengths:
        seen = {spec.name: rng.normal(size=(length, *spec.shape)).astype(np.float32) for spec in described.observations}
        made.append(Episode(seen, rng.normal(size=(length, described.action_dim)).astype(np.float32)))
    write_episodes(folder, described, made)
    return made


def test_a_policy_is_shown_what_was_recorded(tmp_path: Path) -> None:
    """Stored observations are the episodes', in the policy's rhythm, and the stored actions plain ONNX Runtime's."""
    described = schema("regression")
    plain = policy_bundle_of(make_policy(described, stride=2, layers=[MAMBA, MLP]), tmp_path)
    recorded = episodes(tmp_path / "episodes", described, (40, 30, 21, 50, 9, 60))
    paths = tmp_path / "checkpoint", tmp_path / "onnx", tmp_path / "shown"
    bundle = make_bundle(*paths, acceptance=True, observations=tmp_path / "episodes")
    assert check(bundle, device="cpu").error < 1e-4
    with np.load(bundle.file(ACCEPTANCE)) as arrays:
        for number, index in enumerate((0, 1, 3, 5)):
            start = number * (len(recorded[index]) - 16) // 4
            window = recorded[index].observations["state"][start : start + 16 : 2]
            np.testing.assert_array_equal(arrays["observation.state"][number], window)
        reference, committed = PlainPolicy(plain), None
        for step in range(8):
            seen = {name: arrays[f"observation.{name}"][0, step] for name in ("state", "goal")}
            if step % 2:
                committed = arrays["actions"][0, step - 1][2:][:1]
            found = reference.infer(seen, committed if step % 2 else None)
            np.testing.assert_allclose(arrays["actions"][0, step], found, atol=1e-4)


def test_episodes_of_another_schema_are_refused(tmp_path: Path) -> None:
    described = schema("regression")
    policy_bundle_of(make_policy(described, layers=[MAMBA]), tmp_path)
    episodes(tmp_path / "episodes", schema("regression", (VECTOR,)), (20,))
    paths = tmp_path / "checkpoint", tmp_path / "onnx", tmp_path / "shown"
    with pytest.raises(ConfigError, match="An episode's 'goal'"):
        make_bundle(*paths, acceptance=True, observations=tmp_path / "episodes")


def test_an_episode_that_fills_the_context_is_cut(tmp_path: Path) -> None:
    bundle = policy_bundle(tmp_path, layers=[ATTENTION], max_length=5)
    assert check(add_acceptance(bundle.path), device="cpu").error < 1e-4
    with np.load(bundle.path / ACCEPTANCE) as arrays:
        assert arrays["actions"].shape[:2] == (4, 5)


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.pop("observation.goal"),
        lambda arrays: arrays.update(actions=arrays["actions"][:, :, :-1]),
        lambda arrays: arrays.update({"observation.state": arrays["observation.state"].astype(np.float64)}),
        lambda arrays: arrays.update(instructions=np.arange(4)),
        lambda arrays: arrays.update(kind=np.array("logits")),
    ],
)
def test_vectors_that_are_not_the_policys_are_refused(accepted: dict[str, Bundle], tmp_path: Path, change: Any) -> None:
    bad = Path(shutil.copytree(accepted["regression"].path, tmp_path / "bad"))
    with np.load(bad / ACCEPTANCE) as loaded:
        arrays = dict(loaded)
    change(arrays)
    np.savez(bad / ACCEPTANCE, **arrays)
    with pytest.raises(DeployError, match=r"acceptance.npz: expected vectors that this version knows"):
        check(rehashed(bad), device="cpu")


def test_actions_are_compared_as_they_are_normalised(tmp_path: Path) -> None:
    """A dimension in millimetres must not hide one in metres."""
    dims = schema().action.dims
    wide = Normalization(mode="MEAN_STD", stats={"mean": (0.0, 0.0), "std": (1.0, 1000.0)})
    action = type(schema().action)(
        dims=(dims[0], type(dims[0])(name="lift", unit="mm")), rate_hz=50, normalization=wide
    )
    described = PolicyConfig(observations=(VECTOR,), action=action, chunk_length=4, budget_ms=50)
    bundle = policy_bundle_of(make_policy(described, layers=[MAMBA]), tmp_path)
    add_acceptance(bundle.path)
    with np.load(bundle.path / ACCEPTANCE) as loaded:
        arrays = dict(loaded)
    arrays["actions"][2, 3, :, 0] += 1.0
    np.savez(bundle.path / ACCEPTANCE, **arrays)
    with pytest.raises(DeployError, match="found an error of"):
        check(rehashed(bundle.path), device="cpu")
