"""policy.json: what it holds comes back, and what makes no sense is refused by name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.control.normalization import STATS, Mode, Normalization
from edge_sdk.control.policy import POLICY_FILE, ActionDim, ActionSpec, ObservationSpec, PolicyConfig
from edge_sdk.errors import ConfigError

CONFIG = PolicyConfig(
    observations=(
        ObservationSpec(
            name="observation.state",
            shape=(2,),
            units=("rad", "rad/s"),
            normalization=Normalization(mode="MEAN_STD", stats={"mean": (0.0, 1.0), "std": (1.0, 2.0)}),
        ),
        ObservationSpec(name="observation.images.front", shape=(48, 64, 3), kind="image"),
    ),
    action=ActionSpec(
        dims=(
            ActionDim(name="shoulder", unit="rad", lower=-1.5, upper=1.5, max_speed=2.0, rest=None),
            ActionDim(name="wheel", unit="rad/s", max_acceleration=10.0, max_jerk=100.0),
        ),
        rate_hz=50.0,
        normalization=Normalization(mode="QUANTILES", stats={"q01": (-1.0,), "q99": (1.0,)}),
    ),
    chunk_length=16,
    budget_ms=40.0,
    head="flow_matching",
)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    CONFIG.write(tmp_path / POLICY_FILE)
    assert PolicyConfig.read(tmp_path / POLICY_FILE) == CONFIG
    assert [path.name for path in tmp_path.iterdir()] == [POLICY_FILE]


def put(*keys: str | int, value: Any) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return change


STATE = ("observations", 0)
DIM = ("action", "dims", 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("chunk_length", value=0), "chunk_length: expected at least 1, found 0"),
        (put("chunk_length", value="8"), r"Expected `int`, got `str` - at `\$.chunk_length`"),
        (put("budget_ms", value=0), "budget_ms: expected more than 0, found 0"),
        (put("head", value="diffusion"), r"Invalid enum value 'diffusion' - at `\$.head`"),
        (put("heads", value="regression"), "unknown field `heads`"),
        (put("observations", value=[]), "observations: expected at least one, found none"),
        (put(*STATE, "name", value="time_ns"), "observation.name: expected a name other than time_ns"),
        (put(*STATE, "name", value="observation.images.front"), "observations: names: expected each once, found obs"),
        (put(*STATE, "shape", value=[2, 1]), "'observation.state': shape of a vector: expected 1 positive sizes"),
        (put(*STATE, "shape", value=[0]), "'observation.state': shape of a vector: expected 1 positive sizes"),
        (
            put(*STATE, "units", value=["a", "b", "c"]),
            "'observation.state': units: expected 0 or 1 or 2 units, found 3",
        ),
        (put(*STATE, "normalization", "mode", value="ZSCORE"), r"Invalid enum value 'ZSCORE' - at .*observations\[0\]"),
        (
            put(*STATE, "normalization", "mode", value="MIN_MAX"),
            "stats of MIN_MAX: expected min and max, found mean, s",
        ),
        (put(*STATE, "normalization", "stats", "mean", value=[0] * 3), "stats.mean: expected 1 or 2 numbers, found 3"),
        (put(*STATE, "normalization", "stats", "std", value=[1, -1]), "stats.std: expected no negative one, found -1"),
        (put("action", "rate_hz", value=-5), "action.rate_hz: expected more than 0, found -5"),
        (put("action", "dims", value=[]), "action.dims: expected at least one, found none"),
        (put(*DIM, "upper", value=-2), "'shoulder': upper: expected more than lower, -1.5, found -2.0"),
        (put(*DIM, "max_speed", value=0), "'shoulder': max_speed: expected more than 0, found 0"),
        (put(*DIM, "rest", value=2), "'shoulder': rest: expected null or between -1.5 and 1.5, found 2"),
        (put("action", "normalization", "stats", "q99", value=[-2]), r"stats.q99: expected at least q01, found \[-2"),
    ],
)
def test_a_wrong_value_is_refused_by_name(change: Callable[[Any], None], message: str, tmp_path: Path) -> None:
    path = tmp_path / POLICY_FILE
    CONFIG.write(path)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=message) as raised:
        PolicyConfig.read(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"observations": NaN}'])
def test_what_is_no_policy_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / POLICY_FILE
    with pytest.raises(ConfigError, match="No such file"):
        PolicyConfig.read(path)
    path.write_text(text)
    with pytest.raises(ConfigError, match="expected a policy's configuration"):
        PolicyConfig.read(path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["lower", "upper", "max_speed", "max_acceleration", "max_jerk", "rest"])
def test_limits_are_finite(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"action 'a': {name}: expected a finite number or null"):
        ActionDim(name="a", unit="N", **{name: value})


def test_an_observation_that_is_not_the_schemas_is_refused() -> None:
    right = {
        "observation.state": np.zeros(2, np.float32),
        "observation.images.front": np.zeros((48, 64, 3), np.uint8),
        "more": np.zeros(1),
    }
    CONFIG.check_observation(right)
    for name, array in (("state", np.zeros(3, np.float32)), ("state", np.zeros(2)), ("images.front", np.zeros(2))):
        with pytest.raises(ConfigError, match=f"observation 'observation.{name}': expected"):
            CONFIG.check_observation(right | {f"observation.{name}": array})
    with pytest.raises(ConfigError, match="found none"):
        CONFIG.check_observation({})


def by_formula(mode: Mode, x: Any, one: Any, two: Any) -> Any:
    """LeRobot's definitions, written down once more."""
    return (x - one) / two if mode == "MEAN_STD" else 2 * (x - one) / (two - one) - 1


@given(
    mode=st.sampled_from(["MEAN_STD", "MIN_MAX", "QUANTILES", "QUANTILE10"]),
    x=st.lists(st.floats(-100, 100), min_size=3, max_size=3),
    low=st.lists(st.floats(-10, 10), min_size=3, max_size=3),
    width=st.lists(st.floats(0.1, 10), min_size=3, max_size=3),
)
def test_normalisation_is_lerobots_and_can_be_undone(
    mode: Mode, x: list[float], low: list[float], width: list[float]
) -> None:
    one = np.array(low)
    two = np.array(width) if mode == "MEAN_STD" else one + np.array(width)
    names = STATS[mode]
    scaling = Normalization(mode=mode, stats={names[0]: tuple(one), names[1]: tuple(two)}).scaling()
    normalized = scaling.normalize(x)
    assert normalized.dtype == np.float32
    np.testing.assert_allclose(normalized, by_formula(mode, np.array(x), one, two), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(scaling.unnormalize(normalized), x, rtol=1e-4, atol=1e-3)


def test_identity_changes_nothing_and_a_range_of_zero_is_no_division_by_it() -> None:
    x = np.array([1.5, -2.0], np.float32)
    assert (Normalization().scaling().normalize(x) == x).all()
    constant = Normalization(mode="MIN_MAX", stats={"min": (3.0,), "max": (3.0,)}).scaling()
    assert constant.normalize([3.0]).tolist() == [-1.0]
    assert constant.unnormalize([-1.0]).tolist() == [3.0]
    still = Normalization(mode="MEAN_STD", stats={"mean": (3.0,), "std": (0.0,)}).scaling()
    assert still.normalize([3.0]).tolist() == [0.0]
