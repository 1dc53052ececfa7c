"""A Reacher-v5 with two targets and an instruction that says which to reach, or in which order.

    python samples/policies/two_targets.py build/policies/tokenizer     # the instructions' words as tokens

Whether the first of two was reached is in no observation: the policy has to remember it.
"""

from __future__ import annotations

import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

import reacher
from edge_sdk.control.gym_robot import Episode as Outcome
from tasks import Element, Env, Task

INSTRUCTIONS = {
    "reach the left target": ("left",),
    "reach the right target": ("right",),
    "reach the left target, then the right one": ("left", "right"),
    "reach the right target, then the left one": ("right", "left"),
    "touch the left target first, then the right one": ("left", "right"),
    "touch the right target first, then the left one": ("right", "left"),
}
"""What each asks for."""

UNKNOWN = "<unk>"

STEPS = 100
HELD_STEPS = 5
"""How long the fingertip has to stay close for a target to count as reached."""
NEAREST_M, FURTHEST_M = 0.08, 0.19
"""From the shoulder to a target; the left one is above it in the picture, where y is positive."""


class TwoTargets(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Reacher-v5 whose own target is the one that is due; its reward is that of Reacher for this target.

    Observations are Reacher's angles and speeds, the fingertip and both targets: (12,). An episode ends when all
    targets were reached in order, or after 100 steps.
    """

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (12,))
        self.instruction = ""
        self._order: tuple[str, ...] = ()
        self._places: dict[str, NDArray[np.float64]] = {}
        self._due = self._held = self._steps = 0

    @property
    def finished(self) -> bool:
        """Whether all targets were reached."""
        return self._due == len(self._order)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Draws the instruction and the places of the targets from the environment's random numbers."""
        _, info = self.env.reset(seed=seed, options=options)
        arm = reacher.simulation(self)
        random = arm.np_random
        self.instruction = list(INSTRUCTIONS)[random.integers(len(INSTRUCTIONS))]
        self._order = INSTRUCTIONS[self.instruction]
        for name, side in (("left", 1), ("right", -1)):
            angle, reach_m = side * random.uniform(0.3, 1.8), random.uniform(NEAREST_M, FURTHEST_M)
            self._places[name] = reach_m * np.array([np.cos(angle), np.sin(angle)])
            arm.model.site(name).pos[:2] = self._places[name]
        self._due = self._held = self._steps = 0
        self._show_due()
        return self._observation(), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """One step of Reacher's; then the next target may be due."""
        _, reward, _, _, info = self.env.step(action)
        self._steps += 1
        self._held = self._held + 1 if reacher.distance_m(self) < reacher.CLOSE_M else 0
        if self._held == HELD_STEPS:
            self._due, self._held = self._due + 1, 0
            self._show_due()
        return self._observation(), reward, self.finished, self._steps == STEPS, info

    def _show_due(self) -> None:
        if self.finished:
            return
        arm = reacher.simulation(self)
        place = self._places[self._order[self._due]]
        arm.set_state(np.concatenate([arm.data.qpos[:2], place]), arm.data.qvel.copy())

    def _observation(self) -> NDArray[np.float64]:
        arm = reacher.simulation(self)
        angles = arm.data.qpos[:2]
        fingertip = arm.get_body_com("fingertip")[:2]
        return np.concatenate(
            [np.cos(angles), np.sin(angles), arm.data.qvel[:2], fingertip, self._places["left"], self._places["right"]]
        )


def make(**settings: Any) -> Env:
    """Without gymnasium's limit of 50 steps, which is that of one target."""
    return TwoTargets(gymnasium.make("Reacher-v5", xml_file=str(_scene()), max_episode_steps=STEPS, **settings))


@lru_cache(1)
def _scene() -> Path:
    """Reacher's own scene with a mark for each target; its own target, which moves, is not shown."""
    from gymnasium.envs import mujoco

    assert mujoco.__file__
    scene = (Path(mujoco.__file__).parent / "assets" / "reacher.xml").read_text(encoding="utf-8")
    sites = "".join(
        f'<site name="{name}" pos="0 0 0.01" size="0.012" rgba="{color} 1"/>'
        for name, color in (("left", "0.9 0.2 0.2"), ("right", "0.2 0.3 0.9"))
    )
    scene = scene.replace("</worldbody>", f"{sites}</worldbody>").replace(
        '0.9 0.2 0.2 1" size=".009"', '0 0 0 0" size=".009"'
    )
    path = Path(tempfile.mkdtemp(prefix="edge-sdk-"), "two_targets.xml")
    path.write_text(scene, encoding="utf-8")
    return path


def write_tokenizer(folder: Path) -> None:
    """A word-level tokenizer of the instructions."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    split = pre_tokenizers.Whitespace()
    words = sorted({word for text in INSTRUCTIONS for word, _ in split.pre_tokenize_str(text)})
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate([UNKNOWN, *words])}, UNKNOWN))
    tokenizer.pre_tokenizer = split
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))


def succeeded(env: Env, outcome: Outcome) -> bool:
    """Whether all targets were reached in order."""
    return bool(env.get_wrapper_attr("finished"))


def task(*, hidden: bool) -> Task:
    """The task."""
    return Task(
        name="two-targets-hidden" if hidden else "two-targets",
        make=make,
        elements=(*(Element("1"),) * 4, *(Element("rad/s", True),) * 2, *(Element("m"),) * 6),
        joints=reacher.JOINTS,
        action_unit=reacher.TORQUE,
        rate_hz=50.0,
        expert=reacher.expert,
        noise=0.1,
        steps=STEPS,
        succeeded=succeeded,
        budget_ms=10.0,
        hidden=hidden,
    )


if __name__ == "__main__":
    write_tokenizer(Path(sys.argv[1]))
