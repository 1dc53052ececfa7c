"""Plans of steps: which steps there may be, and how a model's answer becomes a plan. No ROS in it.

A plan is data from end to end: what a model says chooses among declared steps, within their limits, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args

import msgspec

from edge_sdk.errors import ConfigError, EdgeError, explain

Form = Literal["words", "json"]
"""How a model says a plan: the names of its steps, or JSON."""

Motion = Literal["forward", "turn", "wait", "jump", "look"]
"""What a step moves."""

UNITS: Mapping[Motion, str] = {"forward": "m", "turn": "rad", "wait": "s", "jump": "s", "look": "s"}
"""Of a step's amount, by its motion (REP 103): forward, and turns to the left, count up."""

LONGEST_LEASE_S = 60.0

Sent = TypeVar("Sent", bound="Part")


class PlanError(EdgeError, ValueError):
    """An answer is not a plan, or not one that may be driven."""


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of what is sent. Raises ConfigError for a value that makes no sense."""

    def json(self) -> str:
        """As it is sent."""
        return msgspec.json.encode(self).decode()


class Step(Part, frozen=True):
    """One step of a plan."""

    name: str
    motion: Motion
    amount: float
    """In the motion's unit."""
    timeout_s: float
    """The longest that it may take."""

    def __post_init__(self) -> None:
        _require(math.isfinite(self.amount), f"{self.name}: amount", "a number", self.amount)
        _require(UNITS[self.motion] != "s" or self.amount >= 0, f"{self.name}: amount", "at least 0 s", self.amount)
        _require(0 < self.timeout_s < math.inf, f"{self.name}: timeout_s", "more than 0", self.timeout_s)


class StepKind(Part, frozen=True):
    """What steps of a name there may be."""

    name: str
    motion: Motion
    low: float
    high: float
    """Limits of the amount; where they are equal a plan need not name it."""
    timeout_s: float

    def __post_init__(self) -> None:
        _require(self.motion in UNITS, f"{self.name}: motion", f"one of {', '.join(UNITS)}", self.motion or "none")
        _require(self.low <= self.high, f"{self.name}: high", f"at least {self.low:g}", self.high)
        for amount in (self.low, self.high):
            self.step(amount)

    @property
    def fixed(self) -> bool:
        """Whether there is only one amount."""
        return self.low == self.high

    def step(self, amount: float | None) -> Step:
        """A step of this amount. Raises PlanError for one outside the limits, and none where there are several."""
        amount = self.low if amount is None and self.fixed else amount
        if amount is None or not self.low <= amount <= self.high:
            unit = UNITS[self.motion]
            raise _refused(f"{self.name}: amount", f"{self.low:g} to {self.high:g} {unit}", amount)
        return Step(name=self.name, motion=self.motion, amount=amount, timeout_s=self.timeout_s)


class Plan(Part, frozen=True):
    """What is to be done, valid by its rules."""

    plan: str
    """Tells it from every other plan."""
    instruction: str
    steps: tuple[Step, ...]


class Order(Part, frozen=True):
    """One step, asked of who drives; it holds for ``lease_s`` after it was last said."""

    plan: str
    index: int
    """Of the step in its plan."""
    step: Step
    lease_s: float

    def __post_init__(self) -> None:
        _require(0 < self.lease_s <= LONGEST_LEASE_S, "lease_s", f"above 0, at most {LONGEST_LEASE_S:g}", self.lease_s)

    @property
    def id(self) -> str:
        """By which progress names it."""
        return f"{self.plan}/{self.index}"


class Progress(Part, frozen=True):
    """What who drives says of an order."""

    state: Literal["standing", "moving", "done", "failed", "stopped", "inactive"]
    order: str = ""
    """Its id; none of who stands or cannot move at all."""
    reason: str = ""


class Rules(Part, frozen=True):
    """Which plans may be driven. Raises ConfigError for rules that allow none."""

    kinds: tuple[StepKind, ...]
    form: Form
    max_steps: int

    def __post_init__(self) -> None:
        names = [kind.name for kind in self.kinds]
        unique = len(set(names)) == len(names) > 0 and all(name.split() == [name] for name in names)
        _require(unique, "step_names", "at least one name, each once, without spaces", names or "none")
        _require(self.form in get_args(Form), "format", " or ".join(get_args(Form)), self.form)
        open_names = [kind.name for kind in self.kinds if not kind.fixed]
        fixed = self.form == "json" or not open_names
        _require(fixed, "Steps that are said as words", "low and high to be equal", ", ".join(open_names))

    def steps(self, answer: str) -> tuple[Step, ...]:
        """The steps that a model's whole answer stands for.

        Raises PlanError for an answer that is no plan, for steps that are unknown or outside their limits, for too
        many, and for none: a model that says no step refuses.
        """
        said = self._said(answer)
        if not said:
            raise PlanError(explain("The plan", expected="steps", found="none", todo="The model refuses. Say it anew."))
        if len(said) > self.max_steps:
            raise _refused("The plan", f"at most {self.max_steps} steps", len(said))
        kinds = {kind.name: kind for kind in self.kinds}
        if unknown := sorted({name for name, _ in said} - set(kinds)):
            raise _refused("The plan", f"only the steps {', '.join(kinds)}", _few(unknown))
        return tuple(kinds[name].step(amount) for name, amount in said)

    def schema(self) -> dict[str, Any]:
        """The JSON schema of a plan, to hold a model to."""
        return {
            "type": "object",
            "properties": {
                "steps": {
                    "type": "array",
                    "items": {"anyOf": [_step_schema(kind) for kind in self.kinds]},
                    "maxItems": self.max_steps,
                }
            },
            "required": ["steps"],
            "additionalProperties": False,
        }

    def told(self) -> str:
        """What a model that speaks JSON is told of the steps, in words."""
        lines = [
            f'- {{"name": "{kind.name}"}}: {kind.motion} {kind.low:g} {UNITS[kind.motion]}'
            if kind.fixed
            else f'- {{"name": "{kind.name}", "amount": ...}}: {kind.motion}, {kind.low:g} to {kind.high:g} '
            + UNITS[kind.motion]
            for kind in self.kinds
        ]
        head = f'Plan what the user asks of a robot. Answer with {{"steps": [...]}}, at most {self.max_steps} of these:'
        return "\n".join([head, *lines, "Turns to the left are positive. If it cannot be done, answer with no steps."])

    def _said(self, answer: str) -> list[tuple[str, float | None]]:
        if self.form == "words":
            return [(name, None) for name in answer.split()]
        try:
            return [(step.name, step.amount) for step in msgspec.json.decode(answer, type=_SaidPlan).steps]
        except msgspec.DecodeError as error:
            raise _refused("The plan", "JSON of the plan's schema", error) from None


class _SaidStep(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    amount: float | None = None


class _SaidPlan(msgspec.Struct, forbid_unknown_fields=True):
    steps: list[_SaidStep]


def _step_schema(kind: StepKind) -> dict[str, Any]:
    properties: dict[str, Any] = {"name": {"const": kind.name}}
    if not kind.fixed:
        properties["amount"] = {"type": "number", "minimum": kind.low, "maximum": kind.high}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def read_order(text: str) -> Order | None:
    """An order as it was sent; an empty text asks to stand. Raises PlanError."""
    return _read(text, Order) if text else None


def read_progress(text: str) -> Progress:
    """Progress as it was sent. Raises PlanError."""
    return _read(text, Progress)


def _read(text: str, kind: type[Sent]) -> Sent:
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError as error:  # ValidationError, which wraps the ConfigError of a part, is one
        raise _refused(f"An {kind.__name__.lower()}", "its JSON", error) from None


def _refused(what: str, expected: object, found: object) -> PlanError:
    return PlanError(explain(what, expected=expected, found=found, todo="Nothing moves."))


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _require(holds: bool, what: str, expected: object, found: object) -> None:
    if not holds:
        raise ConfigError(explain(what, expected=expected, found=found, todo="Correct it."))
