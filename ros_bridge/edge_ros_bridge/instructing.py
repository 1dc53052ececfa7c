"""From an instruction to a plan that was driven: what is asked of the model and of who drives, and when. No ROS."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from edge_ros_bridge.plans import Order, Part, Plan, PlanError, Progress, Rules, Step
from edge_sdk.errors import EdgeError

State = Literal["idle", "thinking", "driving", "done", "refused", "failed", "stopped", "cancelled", "replaced"]

GRACE_S = 2.0
"""How long who drives may take to take up an order, and to say that it has ended beyond the step's own timeout."""

RENEWALS = 4
"""How often an order is said again within its lease."""

UNFIT = {"stopped", "inactive"}
"""Progress without an order that says that nothing can be driven now."""


class Status(Part, frozen=True, kw_only=True, omit_defaults=True):
    """What became of the last instruction, as it is published."""

    state: State
    instruction: str = ""
    plan: str = ""
    step: int = 0
    """The one that is being driven, from 1."""
    steps: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Ended:
    """How a plan ended."""

    state: Literal["done", "failed", "stopped"]
    reason: str = ""


class Sequence:
    """The orders of a plan, one after another. Times are seconds of one clock."""

    def __init__(self, plan: Plan, lease_s: float, now_s: float) -> None:
        self.plan, self._lease_s = plan, lease_s
        self.index = -1
        self.ended: Ended | None = None
        self._began_s, self._said_s = now_s, float("-inf")
        self._taken_up = False
        self._next(now_s)

    @property
    def order(self) -> Order:
        """What is asked for now."""
        return Order(plan=self.plan.plan, index=self.index, step=self._step, lease_s=self._lease_s)

    def due(self, now_s: float) -> Order | None:
        """The order, when it must be said (again)."""
        if self.ended is not None or now_s - self._said_s < self._lease_s / RENEWALS:
            return None
        self._said_s = now_s
        return self.order

    def hear(self, progress: Progress, now_s: float) -> None:
        """What who drives says."""
        if self.ended is not None:
            return
        if not progress.order and progress.state in UNFIT:
            self.ended = Ended("stopped", progress.reason)
        elif not progress.order and self._taken_up:  # asked again, it would begin the step anew, from where it stands
            self.ended = Ended("stopped", "the control node has begun anew, and knows nothing of the step")
        elif progress.order != self.order.id:
            return
        elif progress.state == "moving":
            self._taken_up = True
        elif progress.state == "done":
            self._next(now_s)
        elif progress.state == "failed":
            self.ended = Ended("failed", progress.reason)
        else:
            self.ended = Ended("stopped", progress.reason)

    def watch(self, now_s: float) -> None:
        """Ends the plan where who drives says nothing."""
        silent_s = now_s - self._began_s
        if self.ended is not None:
            return
        if not self._taken_up and silent_s > GRACE_S:
            self.ended = Ended(
                "failed", f"nobody has taken up the step within {GRACE_S:g} s: is the control node there?"
            )
        elif silent_s > self._step.timeout_s + GRACE_S:
            self.ended = Ended("failed", "nothing more was heard of the step: is the control node still there?")

    @property
    def _step(self) -> Step:
        return self.plan.steps[self.index]

    def _next(self, now_s: float) -> None:
        if self.index + 1 == len(self.plan.steps):
            self.ended = Ended("done")
            return
        self.index += 1
        self._began_s, self._said_s, self._taken_up = now_s, float("-inf"), False


class Thought(Protocol):
    """An instruction that a model is asked about."""

    def poll(self) -> str | EdgeError | None:
        """The answer, or why there is none; None while it is being made."""
        ...

    def forget(self) -> None:
        """Ends it; it may compute for one more step."""
        ...


@dataclass(frozen=True)
class Hooks:
    """What an instructor does to the world; called from its caller's thread."""

    ask: Callable[[str], Thought]
    """Begins to ask the model. Raises EdgeError for an instruction that it cannot read."""
    order: Callable[[Order | None], None]
    """Says an order to who drives; None is to stand."""
    plan: Callable[[Plan], None]
    status: Callable[[Status], None]
    now_s: Callable[[], float]


class Instructor:
    """One instruction at a time; a new one takes the place of the last. Used by one thread."""

    def __init__(self, rules: Rules, lease_s: float, hooks: Hooks) -> None:
        self._rules, self._lease_s, self._hooks = rules, lease_s, hooks
        self._thought: Thought | None = None
        self._sequence: Sequence | None = None
        self._unfit: Progress | None = None
        """Why nothing can be driven, as who drives said it last."""
        self.counts: Counter[str] = Counter()
        """How often an instruction came to which end."""
        self.status = Status(state="idle")
        hooks.status(self.status)

    @property
    def busy(self) -> bool:
        """Whether an instruction is being thought about or driven."""
        return self._thought is not None or self._sequence is not None

    def instruct(self, instruction: str) -> None:
        """What to do from now on."""
        self.cancel("another instruction came", "replaced")
        self._tell(Status(state="thinking", instruction=instruction))
        try:
            self._thought = self._hooks.ask(instruction)
        except EdgeError as error:
            self._end("refused", str(error))

    def cancel(self, reason: str, state: State = "cancelled") -> bool:
        """Stands still and forgets the instruction; False where there was none."""
        if not self.busy:
            return False
        self._end(state, reason)
        return True

    def hear(self, progress: Progress) -> None:
        """What who drives says."""
        self._unfit = progress if progress.state in UNFIT and not progress.order else None
        if self._sequence is not None:
            self._sequence.hear(progress, self._hooks.now_s())
            self._go_on()

    def tick(self) -> None:
        """To be called about 20 times a second."""
        if self._thought is not None:
            answer = self._thought.poll()
            if isinstance(answer, EdgeError):
                self._end("failed", str(answer))
            elif answer is not None:
                self._begin(answer)
        if self._sequence is not None:
            self._sequence.watch(self._hooks.now_s())
            self._go_on()

    def _begin(self, answer: str) -> None:
        """Drives what the model answered, if it is a plan."""
        instruction = self.status.instruction
        try:
            plan = Plan(plan=secrets.token_hex(4), instruction=instruction, steps=self._rules.steps(answer))
        except PlanError as error:
            self._end("refused", str(error))
            return
        self._hooks.plan(plan)
        self._forget_thought()
        if self._unfit is not None:
            self._end("refused", self._unfit.reason)
            return
        self._sequence = Sequence(plan, self._lease_s, self._hooks.now_s())

    def _go_on(self) -> None:
        """Says what is to be said of the plan that is driven."""
        sequence = self._sequence
        if sequence is None:
            return
        if sequence.ended is not None:
            self._end(sequence.ended.state, sequence.ended.reason)
            return
        plan, step = sequence.plan, sequence.index + 1
        if (self.status.plan, self.status.step) != (plan.plan, step):
            status = Status(state="driving", plan=plan.plan, step=step, steps=len(plan.steps))
            self._tell(msgspec.structs.replace(status, instruction=plan.instruction))
        order = sequence.due(self._hooks.now_s())
        if order is not None:
            self._hooks.order(order)

    def _end(self, state: State, reason: str) -> None:
        """The robot first, then everybody else."""
        if self._sequence is not None:
            self._hooks.order(None)
        self._sequence = None
        self._forget_thought()
        self.counts[state] += 1
        self._tell(msgspec.structs.replace(self.status, state=state, reason=reason))

    def _forget_thought(self) -> None:
        thought, self._thought = self._thought, None
        if thought is not None:
            thought.forget()

    def _tell(self, status: Status) -> None:
        self.status = status
        self._hooks.status(status)
