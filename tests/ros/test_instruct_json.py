"""A model that was taught to plan in JSON is held to the plan's schema, and what it says drives a simulated rover."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import yaml

import edge_sdk
from edge_ros_bridge.motion import Pose, Speeds, integrate
from edge_ros_bridge.motion import plan as motion
from edge_ros_bridge.plans import Rules, Step, StepKind
from edge_sdk.grammar import Grammar
from places import PLANNER
from processes import INSTRUCTED, Peer, Ros, end
from scan import interpret
from scan_json import plan_of, split
from test_instruct_node import FILES, POLICY

STEPS = PLANNER / "instruct.yaml"
HELD_OUT = random.Random(1).sample([command for command, _ in split()[1]], 60)
LEAST = 0.9
"""Of these, the share that is planned right."""
DRIVEN = ("walk left after run left", "run left and walk twice")
"""Two of them."""
SPEEDS = Speeds(rate_hz=200)
NEAR_M, NEAR_RAD = 0.1, 0.2
"""How far from where SCAN leads the rover may end, on a machine that hears of its odometry late."""


def rules() -> Rules:
    """Those that the node makes of the parameters."""
    node = yaml.safe_load(STEPS.read_text())["/**/instruct"]["ros__parameters"]
    kinds = tuple(StepKind(name=name, **node["steps"][name]) for name in node["step_names"])
    return Rules(kinds=kinds, form=node["format"], max_steps=node["max_steps"])


def true_steps(command: str) -> tuple[Step, ...]:
    """By SCAN's own interpretation."""
    return rules().steps(plan_of(interpret(command)))


def test_held_out_commands_are_planned_in_the_form_of_the_schema(planner_bundle: Path) -> None:
    grammar, model = Grammar.json_schema(rules().schema()), edge_sdk.load(planner_bundle)
    answers = [model.generate(command, max_new_tokens=96, grammar=grammar).text for command in HELD_OUT]
    right = [rules().steps(answer) == true_steps(command) for command, answer in zip(HELD_OUT, answers)]
    assert sum(right) / len(right) >= LEAST


def test_a_plan_that_was_said_in_json_is_driven(ros: Ros, planner_bundle: Path) -> None:
    instruct = ros.node("instruct_node", files=[STEPS], bundle=planner_bundle)
    control = ros.node("control_node", files=FILES["control"], **POLICY)
    with instruct as node, control, ros.peer(INSTRUCTED) as rover:
        rover.call("begin")
        for command in DRIVEN:
            drive(rover, command)
        code, output = end(node)
    assert code == 0, output


def drive(rover: Peer, command: str) -> None:
    """Says it, and compares where the rover ends with where SCAN's own interpretation leads."""
    assert command in HELD_OUT
    start = Pose(*rover.call("rest"))
    rover.call("instruct", text=command)
    rover.call("wait_status", state="done")
    (plan,) = rover.call("wait", topic="plan")
    assert tuple(Step(**step) for step in json.loads(plan)["steps"]) == true_steps(command)
    rest = Pose(*rover.call("rest")).seen_from(start)
    true = integrate(motion(interpret(command), SPEEDS), SPEEDS.rate_hz).end
    assert math.dist((rest.x_m, rest.y_m), (true.x_m, true.y_m)) < NEAR_M
    assert rest.heading_rad == pytest.approx(true.heading_rad, abs=NEAR_RAD)
