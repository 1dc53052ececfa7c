"""LeRobot's ACT in a process of its own, which computes only when it is told to: the control benchmark's peer.

Runs with a Python that has lerobot, and imports nothing of Edge SDK. Reads lines of JSON from its standard input, each
``{"contender": NAME, "threads": N, "seconds": S}``, and answers each with the steps' times in nanoseconds. What it
says first are the contenders and how large they are.

A step is what LeRobot does with an observation that has arrived: tensors of it, and ``select_action`` of a policy that
predicts a chunk for every observation (``n_action_steps`` 1). Normalisation, which LeRobot does outside the policy, is
left out; the encoder of the training's style variable is not counted among the parameters, for it is not run.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import torch
from lerobot import __version__
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy

STATE, ENVIRONMENT, ACTION, CHUNK = 10, 7, 7, 50
"""Sizes: ACT without a camera wants the observation's 17 numbers in two parts."""

SIZES = {"act-small": (128, 512, 4), "act-medium": (256, 1024, 8), "act-large": (512, 3200, 8)}
"""Width, feedforward width and heads; ACT's own are those of the last one."""

LEAST_STEPS = 5


def make(width: int, feedforward: int, heads: int) -> ACTPolicy:
    """Random weights; four encoder layers and one decoder layer, as ACT has them."""
    config = ACTConfig(
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (STATE,)),
            "observation.environment_state": PolicyFeature(FeatureType.ENV, (ENVIRONMENT,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION,))},
        chunk_size=CHUNK,
        n_action_steps=1,
        dim_model=width,
        dim_feedforward=feedforward,
        n_heads=heads,
        device="cpu",
        pretrained_backbone_weights=None,
    )
    torch.manual_seed(0)
    return ACTPolicy(config).eval()


def run(policy: ACTPolicy, seconds: float) -> list[int]:
    """Times of as many steps as begin within the time, in nanoseconds."""
    state, environment = np.zeros((1, STATE), np.float32), np.zeros((1, ENVIRONMENT), np.float32)
    times: list[int] = []
    end_ns = time.perf_counter_ns() + round(seconds * 1e9)
    while len(times) < LEAST_STEPS or time.perf_counter_ns() < end_ns:
        started_ns = time.perf_counter_ns()
        batch = {
            "observation.state": torch.from_numpy(state),
            "observation.environment_state": torch.from_numpy(environment),
        }
        policy.select_action(batch)[0].numpy()
        times.append(time.perf_counter_ns() - started_ns)
    return times


def main() -> None:
    """Answers until its input ends."""
    policies = {name: make(*size) for name, size in SIZES.items()}
    parameters = {
        name: sum(one.numel() for key, one in policy.named_parameters() if "vae" not in key)
        for name, policy in policies.items()
    }
    versions = f"lerobot {__version__}, torch {torch.__version__}"
    print(json.dumps({"parameters": parameters, "versions": versions}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        torch.set_num_threads(asked["threads"])
        print(json.dumps(run(policies[asked["contender"]], asked["seconds"])), flush=True)


if __name__ == "__main__":
    main()
