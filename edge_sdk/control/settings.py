"""How a control loop runs."""

from __future__ import annotations

import math

import msgspec

from edge_sdk.control.chunks import Blending
from edge_sdk.control.limits import OnViolation
from edge_sdk.errors import ConfigError, explain


class Stages(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What happens when the policy is silent, and after how many milliseconds of silence.

    Before ``hold_after_ms`` the planned actions go on, as far as there are any.
    """

    hold_after_ms: float = 100.0
    """Brakes to rest within the limits, and stays."""
    decay_after_ms: float = 300.0
    """Goes to each dimension's ``rest``, in a straight line, to be there at ``stop_after_ms``."""
    stop_after_ms: float = 1000.0
    """``Robot.stop``, and the run ends."""

    def __post_init__(self) -> None:
        values = (self.hold_after_ms, self.decay_after_ms, self.stop_after_ms)
        if not (0 <= values[0] <= values[1] <= values[2] < math.inf):
            todo = "Correct the stages."
            raise ConfigError(explain("Stages", expected="0 <= hold <= decay <= stop", found=values, todo=todo))


class LoopSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a loop runs. Raises ConfigError for a value that makes no sense."""

    blending: Blending = Blending()
    stages: Stages = Stages()
    on_violation: OnViolation = OnViolation()
    replan_ticks: int | None = None
    """Ticks from the beginning of one inference to that of the next, at least; None is half a chunk."""
    late_after_ms: float | None = None
    """A tick that is done later than this after its planned time is late; None is a tenth of the period."""
    freeze_gc: bool = True
    """Whether Python's garbage collector rests during a run: what is in cycles is freed only afterwards."""

    def __post_init__(self) -> None:
        for name, least in (("replan_ticks", 1), ("late_after_ms", 0)):
            value = getattr(self, name)
            if value is not None and not (least <= value < math.inf):
                raise ConfigError(explain(name, expected=f"at least {least}", found=value, todo="Correct it."))
