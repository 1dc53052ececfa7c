"""Limits of position, speed, acceleration and jerk that hold whatever a policy says, with room left to stop in.

One dimension is limited by itself, in units per tick: with x the action, v, a and j are its first three differences,

    v[k] = x[k] - x[k-1],   a[k] = v[k] - v[k-1],   j[k] = a[k] - a[k-1].

It is not enough that the next action respects every limit: one at full speed right before the end of the range does,
and has no successor that does. So an action is let through only with a certificate: a *law* that says what to do in
every tick from then on, and whose whole course respects every limit. Where none is found for the wanted action, one
between it and the law's next action takes its place; that one always has one, for it lies on the last course.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_sdk.control.policy import ActionDim, ActionSpec
from edge_sdk.errors import ConfigError, explain

Kind = Literal["not_finite", "position", "speed", "acceleration", "jerk", "braking"]
KINDS: tuple[Kind, ...] = ("not_finite", "position", "speed", "acceleration", "jerk", "braking")
"""What can be wrong with an action; ``braking``: it respects every limit but leaves no room to stop in."""

RESOLUTION = 2.0**-20
"""A limit that changes an action by less, relative to it or to 1, is no violation: actions come in float32."""

BISECTIONS = 24


class OnViolation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a violated limit does: ``clip`` sends the nearest action that is allowed, ``stop`` ends the run."""

    not_finite: Literal["clip", "stop"] = "stop"
    """NaN or infinite; where it is clipped, that dimension brakes."""
    position: Literal["clip", "stop"] = "clip"
    speed: Literal["clip", "stop"] = "clip"
    acceleration: Literal["clip", "stop"] = "clip"
    jerk: Literal["clip", "stop"] = "clip"

    def stops(self, kind: Kind) -> bool:
        """Whether it ends the run; what only leaves no room to stop in never does."""
        return kind != "braking" and getattr(self, kind) == "stop"


def steepest(room: float, step: float) -> float:
    """The largest ``a`` >= 0 for which ``a + (a - step) + (a - 2 * step) + ...``, as far as positive, is <= ``room``.

    The largest acceleration that can be taken back, by ``step`` a tick, before the speed has changed by ``room``.
    """
    if room <= 0:
        return 0.0
    if math.isinf(room) or math.isinf(step):
        return room
    terms = max(1, math.ceil((math.sqrt(1 + 8 * room / step) - 1) / 2))
    return room / terms + step * (terms - 1) / 2


class Axis:
    """One dimension: its limits in units per tick, and where it is."""

    def __init__(self, dim: ActionDim, rate_hz: float) -> None:
        self.low, self.high = dim.bounds
        self.speed, self.acceleration, self.jerk = (
            math.inf if limit is None else limit / rate_hz**order
            for order, limit in enumerate((dim.max_speed, dim.max_acceleration, dim.max_jerk), start=1)
        )
        self.x = self.v = self.a = 0.0
        self._away = 0
        """The law of the last certificate: 0 brakes; 1 and -1 pull up and down until the speed has turned."""

    def rest_at(self, x: float) -> None:
        """Begins anew, at rest, at a position that is clipped to the range."""
        self.x, self.v, self.a, self._away = min(max(x, self.low), self.high), 0.0, 0.0, 0

    def brake(self) -> None:
        """One tick of the last certificate's law: to rest, by all limits."""
        self._move(self.v + self._course(self.v, self.a, self._away), self._away)

    def step(self, wanted: float) -> Kind | None:
        """Moves to ``wanted``, or as near as the limits allow; returns what was wrong with it."""
        if not math.isfinite(wanted):
            self.brake()
            return "not_finite"
        kind = self._violated(wanted)
        inside = min(max(wanted, self.low), self.high)
        lowest, highest = self._interval(self.v, self.a)
        a = min(max(inside - self.x - self.v, lowest), highest)
        away = self._certificate(a, simulate=kind is None)
        if away is None:
            a, away = self._nearest(a)
        before = self.x
        self._move(self.v + a, away)
        if abs(self.x - inside) <= 1e-12 * max(abs(before), abs(inside)):
            self.x = inside  # the differences' rounding
        return kind or ("braking" if _differ(self.x, wanted) else None)

    def _move(self, v: float, away: int) -> None:
        x = min(max(self.x + v, self.low), self.high)  # the rounding of a course that just touches an end
        self.a, self.v, self.x, self._away = v - self.v, v, x, away

    def _violated(self, wanted: float) -> Kind | None:
        v = wanted - self.x
        a = v - self.v
        slack = RESOLUTION * max(1.0, abs(wanted))
        if not self.low - slack <= wanted <= self.high + slack:
            return "position"
        if abs(v) > self.speed + slack:
            return "speed"
        if abs(a) > self.acceleration + slack:
            return "acceleration"
        return "jerk" if abs(a - self.a) > self.jerk + slack else None

    def _interval(self, v: float, a: float) -> tuple[float, float]:
        """The next accelerations that respect all limits but the range, and can be taken back before the speed's."""
        lowest = max(a - self.jerk, -self.acceleration, -steepest(self.speed + v, self.jerk))
        highest = min(a + self.jerk, self.acceleration, steepest(self.speed - v, self.jerk))
        return lowest, highest

    def _course(self, v: float, a: float, away: int) -> float:
        """The acceleration of the next tick by a law.

        Braking takes the acceleration that, taken back as fast as it may, ends with the speed at 0; so it reaches rest
        exactly. Pulling away from an end takes the largest, until the speed has turned, and then brakes.
        """
        if away and away * v < 0:
            lowest, highest = self._interval(v, a)
            return highest if away > 0 else lowest
        target = -math.copysign(steepest(abs(v), self.jerk), v)
        return min(max(target, a - self.jerk, -self.acceleration), a + self.jerk, self.acceleration)

    def _certificate(self, a: float, *, simulate: bool) -> int | None:
        """A law that keeps to the range after a next tick with this acceleration; None where none was found.

        Far enough from both ends braking does. Elsewhere only a simulation tells.
        """
        v = self.v + a
        x = self.x + v
        if self.low + self._braking_distance(-v, -a) <= x <= self.high - self._braking_distance(v, a):
            return 0
        if not simulate:
            return None
        laws = (0,) if v == 0 else (0, -1 if v > 0 else 1)
        return next((away for away in laws if self._stays(x, v, a, away)), None)

    def _braking_distance(self, v: float, a: float) -> float:
        """At least how far up braking goes: that of continuous time, in which a positive acceleration is first taken
        back and a negative one not counted, and two ticks more.
        """
        rising = max(a, 0.0)
        peak = v + rising * rising / (2 * self.jerk)
        if peak <= 0:
            return 0.0
        if math.isinf(self.jerk):
            return peak * peak / (2 * self.acceleration)
        if peak * self.jerk <= self.acceleration * self.acceleration:
            stopping = peak * math.sqrt(peak / self.jerk)
        else:
            stopping = peak / 2 * (peak / self.acceleration + self.acceleration / self.jerk)
        return stopping + peak * (rising / self.jerk + 2)

    def _stays(self, x: float, v: float, a: float, away: int) -> bool:
        while self.low <= x <= self.high:
            if v == 0 and a == 0:
                return True
            a = self._course(v, a, away)
            v += a
            x += v
        return False

    def _nearest(self, wanted: float) -> tuple[float, int]:
        """An acceleration with a certificate, as near as bisection finds one between the law's and the wanted."""
        away = self._away
        good, bad = self._course(self.v, self.a, away), wanted
        for _ in range(BISECTIONS):
            middle = (good + bad) / 2
            found = self._certificate(middle, simulate=False)
            if found is None:
                bad = middle
            else:
                good, away = middle, found
        return good, away


def _differ(one: float, other: float) -> bool:
    return abs(one - other) > RESOLUTION * max(1.0, abs(other))


class Limiter:
    """Limits the actions of a loop, one in every tick.

    Whatever goes in, what comes out respects every limit, to the rounding of float64; and from the first action on,
    each is one from which the robot can be stopped within all of them. What goes in and respects the limits, and from
    where braking (or turning back) respects them too, comes out unchanged. Differences are taken over the actions that
    went out: over a tick that was missed the robot has longer, and is slower.

    The first action is limited by position only, for nothing is known of what was before; ``start`` says it.
    """

    def __init__(
        self, spec: ActionSpec, *, on_violation: OnViolation | None = None, start: ArrayLike | None = None
    ) -> None:
        """``start`` has shape (action_dim,): where the robot is, at rest. Raises ConfigError for another one."""
        self._axes = [Axis(dim, spec.rate_hz) for dim in spec.dims]
        self._rests = [dim.rest for dim in spec.dims]
        self._on_violation = on_violation or OnViolation()
        self._out: NDArray[np.float64] = np.zeros(len(self._axes))
        self.counts: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        """Violations by kind, of every dimension and tick."""
        self.started = start is not None
        """Whether there is a last action."""
        if start is not None:
            self._begin(start)

    def step(self, wanted: NDArray[np.floating]) -> tuple[NDArray[np.float64], int, Kind | None]:
        """One tick: the action to send, the number of violations, and one that asks for a stop.

        ``wanted`` is (action_dim,). The action is (action_dim,) float64, and overwritten by the next call.
        """
        if not self.started:
            if not np.isfinite(wanted).all():
                self.counts["not_finite"] += 1
                return self._read(), 1, "not_finite"  # nothing is known that could be sent instead
            self._begin(wanted)
        violations, stop = 0, None
        for kind in self._kinds(wanted.tolist()):
            self.counts[kind] += 1
            violations += 1
            stop = stop or (kind if self._on_violation.stops(kind) else None)
        return self._read(), violations, stop

    def brake(self) -> NDArray[np.float64]:
        """One tick towards rest, from wherever it is; the action as :meth:`step` returns it."""
        for axis in self._axes:
            axis.brake()
        return self._read()

    def approach(self, target: NDArray[np.float64]) -> NDArray[np.float64]:
        """As :meth:`step` for an action of our own, whose violations are not counted."""
        for axis, wanted in zip(self._axes, target.tolist()):
            axis.step(wanted)
        return self._read()

    def rest(self) -> None:
        """The robot was stopped: the next action begins at ``rest``, or where there is none at the last action.

        A stopped robot keeps its position, but not its speed.
        """
        for axis, rest in zip(self._axes, self._rests):
            axis.rest_at(axis.x if rest is None else rest)

    @property
    def last(self) -> NDArray[np.float64]:
        """The last action, (action_dim,)."""
        return self._read()

    def _begin(self, start: ArrayLike) -> None:
        values = np.asarray(start, dtype=np.float64)
        if values.shape != self._out.shape or not np.isfinite(values).all():
            found = f"{values.tolist()}"
            todo = "Give the robot's position, one number for each dimension."
            raise ConfigError(explain("start", expected=f"{self._out.shape} finite numbers", found=found, todo=todo))
        for axis, value in zip(self._axes, values.tolist()):
            axis.rest_at(value)
        self.started = True

    def _kinds(self, wanted: list[float]) -> Iterator[Kind]:
        for axis, value in zip(self._axes, wanted):
            kind = axis.step(value)
            if kind is not None:
                yield kind

    def _read(self) -> NDArray[np.float64]:
        for index, axis in enumerate(self._axes):
            self._out[index] = axis.x
        return self._out
