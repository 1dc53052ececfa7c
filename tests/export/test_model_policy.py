"""A policy's bundle at run time: what plain ONNX Runtime computes, in place, again from any snapshot."""

from __future__ import annotations

import logging
import shutil
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import gymnasium
import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edge_sdk
from edge_sdk.bundle import MANIFEST, Bundle, FileEntry, Manifest
from edge_sdk.control.gym_robot import gym_config
from edge_sdk.control.model_policy import ModelPolicy, Noise, load_policy
from edge_sdk.control.policy import POLICY_FILE, PolicyConfig
from edge_sdk.errors import BundleError, ConfigError, PromptError, StateError
from edge_sdk.files import sha256
from edge_sdk.model import MlpSpec, ModelConfig
from edge_sdk.policy_spec import PolicySpec
from plain_policy import PlainPolicy
from policies import ATTENTION, CAMERA, MAMBA, MLP, RANGE, VECTOR, WORDS, bundle_of, make_policy, schema

MAX_LENGTH = 24
LANGUAGE = ModelConfig(family="test", vocab_size=8, hidden=8, layers=(MlpSpec(intermediate=8),))
INSTRUCTION = "reach the left target"


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Regression with attention, a camera and an instruction."""
    described = schema("regression", (VECTOR, CAMERA, RANGE))
    made = make_policy(described, instruction=True, max_length=MAX_LENGTH, layers=[MAMBA, MLP, ATTENTION])
    return bundle_of(made, tmp_path_factory.mktemp("hybrid"))


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Flow matching for gymnasium's pendulum, Mamba-2 only."""
    config = gym_config(gymnasium.make("Pendulum-v1"), rate_hz=20, chunk_length=4, budget_ms=1e4)
    described = msgspec.structs.replace(config, head="flow_matching")
    return bundle_of(make_policy(described, max_length=8, layers=[MAMBA, MLP]), tmp_path_factory.mktemp("flow"))


@pytest.fixture(params=["hybrid", "flow"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    found: Bundle = request.getfixturevalue(request.param)
    return found


def schema_of(bundle: Bundle) -> PolicyConfig:
    spec = bundle.manifest.model.policy
    assert isinstance(spec, PolicySpec)
    return spec.schema


def observed(config: PolicyConfig, number: int) -> dict[str, np.ndarray]:
    """The same for the same number, within what is usual for each part."""
    rng = np.random.default_rng(number)
    return {
        spec.name: rng.integers(0, 256, spec.shape, np.uint8)
        if spec.kind == "image"
        else rng.normal(size=spec.shape).astype(np.float32)
        for spec in config.observations
    }


def actions(config: PolicyConfig, count: int, number: int = 0) -> Any:
    """Some to commit, (count, action_dim)."""
    return np.random.default_rng(number).uniform(-1, 1, (count, config.action_dim)).astype(np.float32)


def noise_of(policy: ModelPolicy, position: int) -> np.ndarray:
    config = policy.config
    noise = np.empty((1, 1, config.chunk_length, config.action_dim), np.float32)
    Noise(7).draw(position, noise)
    return noise


@pytest.mark.parametrize("kernels", ["auto", "none"])
def test_every_step_is_that_of_plain_onnxruntime(bundle: Bundle, kernels: str) -> None:
    policy, plain = ModelPolicy(bundle, seed=7, kernels=kernels), PlainPolicy(bundle)
    assert policy.engine.native == (kernels == "auto")
    for step in range(MAX_LENGTH if policy.max_positions else 40):
        committed = actions(policy.config, step % 4) if step % 4 else None
        expected = plain.infer(observed(policy.config, step), committed, noise_of(policy, step))
        found = policy.infer(observed(policy.config, step), committed)
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)
        assert policy.position == plain.past_length


@pytest.mark.parametrize("kernels", ["auto", "none"])
def test_an_instruction_is_a_prefix_from_the_next_reset_on(hybrid: Bundle, kernels: str) -> None:
    policy, plain = ModelPolicy(hybrid, kernels=kernels), PlainPolicy(hybrid)
    first, second = observed(policy.config, 0), observed(policy.config, 1)
    silent = policy.infer(first).copy()
    policy.instruct(INSTRUCTION)
    unchanged = policy.infer(second).copy()
    policy.reset()
    assert policy.position == 4
    told = policy.infer(first).copy()

    plain.read([WORDS.index(word) for word in INSTRUCTION.split()])
    np.testing.assert_allclose(told, plain.infer(first), rtol=2e-4, atol=2e-4)
    assert np.abs(told - silent).max() > 1e-2
    policy.instruct("")
    policy.reset()
    np.testing.assert_array_equal(policy.infer(first), silent)
    np.testing.assert_array_equal(policy.infer(second), unchanged)
    np.testing.assert_array_equal(ModelPolicy(hybrid, instruction=INSTRUCTION, kernels=kernels).infer(first), told)


INFER = st.tuples(st.just("infer"), st.integers(0, 3), st.integers(0, 6))
OPERATIONS = st.lists(
    st.one_of(
        INFER,
        INFER,
        INFER,
        st.tuples(st.just("snapshot"), st.none(), st.none()),
        st.tuples(st.just("restore"), st.integers(0, 9), st.none()),
        st.tuples(st.just("reset"), st.none(), st.none()),
    ),
    min_size=8,
    max_size=20,
)


@pytest.fixture(scope="module")
def pairs(hybrid: Bundle, flow: Bundle) -> dict[str, tuple[ModelPolicy, ModelPolicy]]:
    """Two of each."""
    return {
        "hybrid": tuple(ModelPolicy(hybrid, instruction=INSTRUCTION) for _ in "12"),
        "flow": tuple(ModelPolicy(flow, seed=7) for _ in "12"),
    }


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["hybrid", "flow"]), operations=OPERATIONS)
def test_what_comes_out_follows_from_what_went_in_since_the_reset(
    pairs: dict[str, tuple[ModelPolicy, ModelPolicy]], kind: str, operations: list[Any]
) -> None:
    """Whatever was restored meanwhile: another policy that is fed the same from a reset on says the same bits."""
    policy, other = pairs[kind]
    policy.reset()
    history: list[tuple[int, int]] = []
    kept = [(policy.snapshot(), list(history))]
    for operation, first, second in operations:
        if operation == "infer":
            history.append((first, second))
            chunk = infer(policy, first, second).copy()
            other.reset()
            np.testing.assert_array_equal([infer(other, *fed).copy() for fed in history][-1], chunk)
        elif operation == "snapshot":
            kept.append((policy.snapshot(), list(history)))
        elif operation == "restore":
            snapshot, history = kept[first % len(kept)]
            history = list(history)
            policy.restore(snapshot)
        else:
            policy.reset()
            history = []


def infer(policy: ModelPolicy, number: int, committed: int) -> Any:
    told = actions(policy.config, committed, number) if committed else None
    return policy.infer(observed(policy.config, number), told)


@pytest.mark.parametrize("kernels", ["auto", "none"])
def test_a_reset_policy_is_a_new_one(bundle: Bundle, kernels: str) -> None:
    """Even where a NaN was observed, which stays in every state."""
    policy = ModelPolicy(bundle, kernels=kernels)
    broken = {
        name: np.full_like(array, np.nan if array.dtype == np.float32 else 9)
        for name, array in observed(policy.config, 0).items()
    }
    for _ in range(5):
        chunk = policy.infer(broken)
    assert np.isnan(chunk).all()
    policy.reset()
    new = ModelPolicy(bundle, kernels=kernels)
    for step in range(6):
        chunk = policy.infer(observed(policy.config, step)).copy()
        np.testing.assert_array_equal(chunk, new.infer(observed(policy.config, step)))
        assert np.isfinite(chunk).all()


def test_committed_actions_come_back_as_they_are(bundle: Bundle) -> None:
    policy = ModelPolicy(bundle)
    length = policy.config.chunk_length
    seen = observed(policy.config, 0)
    free = policy.infer(seen).copy()
    for count in (0, 2, length, length + 3):
        policy.reset()
        told = actions(policy.config, count)
        chunk = policy.infer(seen, told)
        shared = min(count, length)
        np.testing.assert_allclose(chunk[:shared], told[:shared], rtol=1e-5, atol=1e-6)
        assert (np.abs(chunk[shared:] - free[shared:]) > 1e-6).any() == (0 < count < length)
    with pytest.raises(ConfigError, match="Committed actions: expected shape"):
        policy.infer(seen, np.zeros((2, policy.config.action_dim + 1), np.float32))


def test_a_step_allocates_nothing_that_stays_and_no_array(bundle: Bundle) -> None:
    policy = ModelPolicy(bundle)
    seen, told = observed(policy.config, 0), actions(policy.config, 2)
    kept = []
    tracemalloc.start()
    try:
        for _ in range(8):
            policy.reset()
            policy.infer(seen, told)
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            for _ in range(8):
                policy.infer(seen, told)
            after, peak = tracemalloc.get_traced_memory()
            kept.append(after - before)
            assert peak - before < 2048  # frames, views and numbers; the camera's picture alone has 1,680 bytes
    finally:
        tracemalloc.stop()
    assert policy.infer(seen) is policy.infer(seen, told)
    assert not policy.infer(seen).flags.writeable
    assert min(kept) <= 0  # now and then the interpreter itself keeps something


def test_other_threads_run_while_it_computes(flow: Bundle) -> None:
    """A thread that waits for Python's interpreter gets it in the midst of a step, and not because time is up."""
    policy = ModelPolicy(flow)
    seen, interval_s = observed(policy.config, 0), sys.getswitchinterval()
    count, done = 0, False

    def work() -> None:
        nonlocal count
        while not done:
            count += 1
            time.sleep(0)

    thread = threading.Thread(target=work)
    sys.setswitchinterval(1000)
    try:
        thread.start()
        deadline_s, progressed = time.monotonic() + 30, False
        while not progressed and time.monotonic() < deadline_s:
            before = count
            policy.infer(seen)
            progressed = count > before
    finally:
        done = True
        sys.setswitchinterval(interval_s)
        thread.join()
    assert progressed


def test_an_episode_longer_than_the_context_of_attention_is_refused(hybrid: Bundle) -> None:
    policy = ModelPolicy(hybrid, instruction=INSTRUCTION)
    seen = observed(policy.config, 0)
    first = policy.infer(seen).copy()
    for _ in range(MAX_LENGTH - 5):
        policy.infer(seen)
    with pytest.raises(PromptError, match=f"at most {MAX_LENGTH} positions"):
        policy.infer(seen)
    policy.reset()
    np.testing.assert_array_equal(policy.infer(seen), first)


def test_states_in_a_file_go_on_in_another_process_and_another_bundle_has_none(
    hybrid: Bundle, flow: Bundle, tmp_path: Path
) -> None:
    """At more positions than ``max_length``, where there is no attention."""
    for bundle, steps in ((hybrid, 5), (flow, 20)):
        policy, again = ModelPolicy(bundle, seed=7), ModelPolicy(bundle, seed=7)
        seen = observed(policy.config, 0)
        for _ in range(steps):
            policy.infer(seen)
        policy.save(tmp_path / "state")
        again.load(tmp_path / "state")
        assert again.position == steps
        np.testing.assert_array_equal(again.infer(seen), policy.infer(seen))
    with pytest.raises(StateError, match="a state of model"):
        ModelPolicy(hybrid).load(tmp_path / "state")
    content = bytearray((tmp_path / "state").read_bytes())
    content[-100] ^= 1
    (tmp_path / "state").write_bytes(content)
    with pytest.raises(StateError, match="a truncated or altered one"):
        again.load(tmp_path / "state")


def test_wrong_observations_are_refused_and_change_nothing(bundle: Bundle) -> None:
    policy = ModelPolicy(bundle)
    seen = observed(policy.config, 0)
    name = policy.config.observations[0].name
    for wrong in (seen[name].astype(np.float64), seen[name][:1], None):
        with pytest.raises(ConfigError, match=f"observation '{name}'"):
            policy.infer({**seen, name: wrong} if wrong is not None else {})
    assert policy.position == 0


def test_instructions_and_seeds_that_cannot_be_are_refused(hybrid: Bundle, flow: Bundle) -> None:
    with pytest.raises(ConfigError, match="none by this policy"):
        load_policy(flow.path, instruction=INSTRUCTION)
    with pytest.raises(ConfigError, match="seed: expected at least 0"):
        load_policy(flow.path, seed=-1)
    with pytest.raises(PromptError, match=f"fewer than {MAX_LENGTH} tokens, found {MAX_LENGTH}"):
        load_policy(hybrid.path, instruction="stop " * MAX_LENGTH)


def with_budget(bundle: Bundle, folder: Path, budget_ms: float) -> Path:
    """A copy of a bundle with another budget."""
    shutil.copytree(bundle.path, folder)
    manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    spec = manifest.model.policy
    assert spec is not None
    spec = msgspec.structs.replace(spec, schema=msgspec.structs.replace(spec.schema, budget_ms=budget_ms))
    spec.schema.write(folder / POLICY_FILE)
    entry = FileEntry(sha256(folder / POLICY_FILE), (folder / POLICY_FILE).stat().st_size)
    model = msgspec.structs.replace(manifest.model, policy=spec)
    files = {**manifest.files, POLICY_FILE: entry}
    (folder / MANIFEST).write_bytes(msgspec.json.encode(msgspec.structs.replace(manifest, model=model, files=files)))
    return folder


def test_a_budget_that_does_not_hold_here_is_said(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edge_sdk")
    policy = edge_sdk.load_policy(bundle.path)
    assert policy.position == 0
    (said,) = (record for record in caplog.records if "a step takes" in record.message)
    assert said.levelno == logging.INFO
    caplog.clear()
    edge_sdk.load_policy(with_budget(bundle, tmp_path / "hasty", 1e-6))
    (said,) = (record for record in caplog.records if "a step takes" in record.message)
    assert said.levelno == logging.WARNING
    assert "more than the policy's budget of 1e-06 ms" in said.message


def test_bundles_of_the_other_kind_and_damaged_ones_are_refused(flow: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="expected a language model, found a policy"):
        edge_sdk.load(flow.path)
    language = Bundle(flow.path, msgspec.structs.replace(flow.manifest, model=LANGUAGE))
    with pytest.raises(BundleError, match="expected a policy, found a language model"):
        ModelPolicy(language)
    shutil.copytree(flow.path, tmp_path / "bundle")
    (tmp_path / "bundle" / POLICY_FILE).unlink()
    with pytest.raises(BundleError, match=POLICY_FILE):
        load_policy(tmp_path / "bundle")
