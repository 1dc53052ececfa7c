"""From an instruction to a plan that is driven, with a real model and the real loop in simulated time; no ROS."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models

import edge_sdk
from bundles import changed
from edge_ros_bridge.answering import Settings
from edge_ros_bridge.asking import AskedModel, unknown_words
from edge_ros_bridge.counting import Answers
from edge_ros_bridge.instructing import GRACE_S, Hooks, Instructor, Sequence, Status
from edge_ros_bridge.motion import STOP
from edge_ros_bridge.plans import Order, Plan, Progress, Rules, StepKind
from edge_sdk.errors import EdgeError, PromptError
from edge_sdk.grammar import Grammar
from edge_sdk.language import LanguageModel
from scan import interpret
from world import World

QUARTER = math.pi / 2
AMOUNTS = {"I_WALK": 0.5, "I_RUN": 1.0, "I_TURN_LEFT": QUARTER, "I_TURN_RIGHT": -QUARTER, "I_JUMP": 0.2, "I_LOOK": 0.2}
MOTIONS = {"I_WALK": "forward", "I_RUN": "forward", "I_TURN_LEFT": "turn", "I_TURN_RIGHT": "turn"}
KINDS = tuple(
    StepKind(
        name=name,
        motion=MOTIONS.get(name, name[2:].lower()),  # type: ignore[arg-type]
        low=amount,
        high=amount,
        timeout_s=10.0,
    )
    for name, amount in AMOUNTS.items()
)
RULES = Rules(kinds=KINDS, form="words", max_steps=48)


@pytest.fixture(scope="module")
def model(scan_bundle: Path) -> LanguageModel:
    """Of SCAN."""
    return edge_sdk.load(scan_bundle)


class Room:
    """An instructor whose orders a follower in a simulation does; time is the simulation's."""

    def __init__(self, model: LanguageModel, rules: Rules = RULES, settings: Settings | None = None) -> None:
        self.world, self.plans, self.orders = World(), list[Plan](), list[Order | None]()
        self.statuses: list[Status] = []
        self.connected, self.fit = True, Progress(state="standing")
        """Whether orders arrive, and what the node that drives says of itself."""
        answers, chosen = Answers(), settings or Settings()
        hooks = Hooks(
            ask=lambda instruction: AskedModel(model, instruction, chosen, answers),
            order=self._order,
            plan=self.plans.append,
            status=self.statuses.append,
            now_s=lambda: self.world.now_s,
        )
        self.instructor = Instructor(rules, 1.0, hooks)
        self._told = Progress(state="standing")

    @property
    def states(self) -> list[str]:
        """What was said of the instructions."""
        return [status.state for status in self.statuses]

    def think(self) -> None:
        """Until the model has answered; simulated time does not wait for it."""
        while self.instructor.status.state == "thinking":
            self.instructor.tick()
            time.sleep(0.005)

    def go_on(self) -> None:
        """What happens between two ticks."""
        self.instructor.tick()
        progress = self.fit if self.fit.state != "standing" else self.world.follower.progress
        if progress != self._told:
            self._told = progress
            self.instructor.hear(progress)

    def obey(self, instruction: str) -> Iterator[None]:
        """Of a script: says it, and drives until it has ended."""
        self.instructor.instruct(instruction)
        self.think()
        yield from self.until(lambda: not self.instructor.busy)

    def until(self, done: Callable[[], bool]) -> Iterator[None]:
        """Of a script: drives until a condition holds."""
        while not done():
            self.go_on()
            yield

    def _order(self, order: Order | None) -> None:
        self.orders.append(order)
        if self.connected:
            self.world.follower.take(order)


@pytest.mark.parametrize(
    "instruction", ["walk around left", "look opposite right and run", "jump twice after turn left"]
)
def test_an_instruction_is_driven_step_by_step_as_scans_grammar_says(model: LanguageModel, instruction: str) -> None:
    room = Room(model)
    room.world.play(room.obey(instruction))
    (plan,) = room.plans
    expected = interpret(instruction)
    assert [step.name for step in plan.steps] == expected
    assert plan.instruction == instruction
    assert room.states == ["idle", "thinking", *["driving"] * len(expected), "done"]
    assert [status.step for status in room.statuses if status.state == "driving"] == [*range(1, len(expected) + 1)]
    asked = [order.index for order in room.orders if order is not None]
    assert asked == sorted(asked)
    assert room.orders[-1] is None
    turns = expected.count("I_TURN_LEFT") - expected.count("I_TURN_RIGHT")
    assert room.world.pose.heading_rad - room.world.start.heading_rad == pytest.approx(turns * QUARTER, abs=0.03)


@pytest.mark.parametrize(
    ("instruction", "rules", "message"),
    [
        ("make me a coffee", RULES, "expected words of the model, found make, me, a, coffee"),
        ("", RULES, "expected some text, found none"),
        ("walk around left thrice", Rules(kinds=KINDS, form="words", max_steps=5), "at most 5 steps, found 24"),
        ("walk left", Rules(kinds=KINDS[:1], form="words", max_steps=5), "only the steps I_WALK, found I_TURN_LEFT"),
    ],
    ids=["unknown words", "nothing", "too long", "unknown steps"],
)
def test_what_makes_no_plan_is_refused_and_nothing_moves(
    model: LanguageModel, instruction: str, rules: Rules, message: str
) -> None:
    room = Room(model, rules)
    room.world.play(room.obey(instruction))
    assert room.states == ["idle", "thinking", "refused"]
    assert message in room.statuses[-1].reason
    assert (room.plans, room.orders) == ([], [])
    assert room.world.pose == room.world.start


def test_an_answer_that_is_cut_off_is_not_driven(model: LanguageModel) -> None:
    room = Room(model, settings=Settings(max_new_tokens=3))
    room.world.play(room.obey("walk around left"))
    assert room.states == ["idle", "thinking", "failed"]
    assert "expected to end within 3 tokens" in room.statuses[-1].reason
    assert room.orders == []


def test_a_new_instruction_takes_the_place_of_the_one_that_is_driven(model: LanguageModel) -> None:
    room = Room(model)

    def script() -> Iterator[None]:
        room.instructor.instruct("run around left thrice")
        room.think()
        yield from room.until(lambda: room.instructor.status.step == 2)
        assert room.orders[-1] is not None
        room.instructor.instruct("turn left")
        assert room.orders[-1] is None  # it stands while the model thinks
        room.think()
        yield from room.until(lambda: not room.instructor.busy)

    room.world.play(script())
    assert room.states == ["idle", "thinking", "driving", "driving", "replaced", "thinking", "driving", "done"]
    assert [status.instruction for status in room.statuses[4:6]] == ["run around left thrice", "turn left"]
    assert [len(plan.steps) for plan in room.plans] == [24, 1]


def test_a_new_instruction_takes_the_place_of_the_one_that_is_thought_about(model: LanguageModel) -> None:
    room = Room(model)
    for _ in range(5):
        room.instructor.instruct("run around left thrice")
    room.world.play(room.obey("turn left"))
    assert room.states == ["idle", *["thinking", "replaced"] * 5, "thinking", "driving", "done"]
    assert [plan.instruction for plan in room.plans] == ["turn left"]


def test_a_cancelled_instruction_stands_and_says_so(model: LanguageModel) -> None:
    room = Room(model)

    def script() -> Iterator[None]:
        room.instructor.instruct("run thrice")
        room.think()
        yield from room.until(lambda: room.world.velocity.linear_x > 1)
        assert room.instructor.cancel("enough")
        assert not room.instructor.cancel("enough")
        yield from room.world.until(lambda: room.world.velocity == STOP)

    room.world.play(script())
    assert (room.statuses[-1].state, room.statuses[-1].reason) == ("cancelled", "enough")
    assert room.world.follower.progress.reason == "asked to stand"


def test_an_emergency_stop_ends_the_plan_and_its_release_does_not_go_on(model: LanguageModel) -> None:
    room = Room(model)

    def script() -> Iterator[None]:
        room.instructor.instruct("run thrice")
        room.think()
        yield from room.until(lambda: room.world.velocity.linear_x > 1)
        room.world.loop.estop()
        room.fit = Progress(state="stopped", reason="the emergency stop is latched")
        stood = room.world.pose
        yield from room.until(lambda: not room.instructor.busy)
        yield from room.obey("turn left")
        room.world.loop.reset_estop()
        room.fit = Progress(state="standing")
        for _ in range(20):
            room.go_on()
            yield
        assert room.world.pose == stood
        yield from room.obey("turn left")

    room.world.play(script())
    ends = [(status.state, status.reason) for status in room.statuses if status.state not in ("thinking", "driving")]
    latched = "the emergency stop is latched"
    assert ends == [("idle", ""), ("stopped", latched), ("refused", latched), ("done", "")]


def test_a_step_that_cannot_be_done_fails_the_plan(model: LanguageModel) -> None:
    room = Room(model)
    room.world.blocked = True
    room.world.play(room.obey("walk twice"))
    assert room.states == ["idle", "thinking", "driving", "failed"]
    assert room.statuses[-1].reason == "I_WALK has not ended within 10 s"


def test_nobody_who_drives_fails_the_plan(model: LanguageModel) -> None:
    room = Room(model)
    room.connected = False
    room.world.play(room.obey("walk"))
    assert room.states == ["idle", "thinking", "driving", "failed"]
    assert "nobody has taken up the step" in room.statuses[-1].reason


def test_who_falls_silent_while_driving_fails_the_plan() -> None:
    sequence = Sequence(Plan(plan="a", instruction="", steps=(KINDS[0].step(None),)), lease_s=1.0, now_s=5.0)
    assert sequence.due(5.0) == sequence.order
    assert [sequence.due(5.0 + tick / 10) is not None for tick in range(1, 7)] == [
        False,
        False,
        True,
        False,
        False,
        True,
    ]
    sequence.hear(Progress(state="moving", order="a/0"), 5.1)
    sequence.hear(Progress(state="done", order="b/0"), 5.2)  # of another plan
    sequence.watch(15.0 + GRACE_S)
    assert sequence.ended is None
    sequence.watch(15.1 + GRACE_S)
    assert sequence.ended is not None
    assert sequence.ended.state == "failed"
    sequence.hear(Progress(state="done", order="a/0"), 20.0)
    assert sequence.ended.state == "failed"


def test_who_drives_and_has_begun_anew_ends_the_plan_rather_than_the_step_twice() -> None:
    sequence = Sequence(Plan(plan="a", instruction="", steps=(KINDS[0].step(None),)), lease_s=1.0, now_s=0.0)
    sequence.hear(Progress(state="standing"), 0.1)
    assert sequence.ended is None
    sequence.hear(Progress(state="moving", order="a/0"), 0.2)
    sequence.hear(Progress(state="standing"), 0.3)
    assert sequence.ended is not None
    assert sequence.ended.state == "stopped"
    assert sequence.due(10.0) is None


TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
LETTERS = '{}[]":, stepnaoumil12.'
"""What plans of ``nap`` and ``go`` would be written in."""
NAP = StepKind(name="nap", motion="wait", low=1.0, high=2.0, timeout_s=5.0)
SPIN = StepKind(name="lean", motion="turn", low=1.0, high=1.0, timeout_s=5.0)
JSON = Rules(kinds=(NAP, SPIN), form="json", max_steps=2)


def test_a_model_that_is_held_to_the_schema_says_a_plan_that_is_driven(scan_bundle: Path, tmp_path: Path) -> None:
    """What it says is chance: its weights know nothing of letters. Its form is not."""
    vocab = {"</s>": 2} | {letter: 3 + index - (index < 0) for index, letter in enumerate(LETTERS[:21])}
    vocab |= {"~": 0, LETTERS[21]: 1}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.decoder = decoders.Fuse()
    model = edge_sdk.load(changed(scan_bundle, tmp_path / "bundle", TEMPLATE, tokenizer.to_str()))
    settings = Settings(max_new_tokens=100, temperature=1.0, grammar=Grammar.json_schema(JSON.schema()))
    assert unknown_words(model.codec, "anything") == []
    answers = Answers()
    for _ in range(5):
        asked = AskedModel(model, "nap", settings, answers)
        while (answer := asked.poll()) is None:
            time.sleep(0.005)
        assert not isinstance(answer, EdgeError), answer
        said = json.loads(answer)["steps"]
        if said:
            assert [step.name for step in JSON.steps(answer)] == [step["name"] for step in said]


def test_words_that_a_model_cannot_read_are_found(model: LanguageModel) -> None:
    assert unknown_words(model.codec, "walk  to the left") == ["to", "the"]
    with pytest.raises(PromptError, match="found fly"):
        AskedModel(model, "fly twice", Settings(), Answers())
