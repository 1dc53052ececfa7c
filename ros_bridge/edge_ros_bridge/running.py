"""A control loop in a thread of its own, with an emergency stop that outlasts it. No ROS in it."""

from __future__ import annotations

import threading
import traceback
from contextlib import ExitStack
from pathlib import Path

from edge_ros_bridge.counting import Ticks
from edge_ros_bridge.ros_robot import RosRobot
from edge_sdk.control.clock import Clock
from edge_sdk.control.loop import ControlLoop
from edge_sdk.control.observers import Counter, Observer
from edge_sdk.control.policy import Policy
from edge_sdk.control.report import Report
from edge_sdk.control.settings import LoopSettings
from edge_sdk.figures import loop_figures

END_TIMEOUT_S = 3.0
"""How long the end of a run is waited for: a tick, and the inference that is being made."""


class Runner:
    """One run of a policy on a robot, from construction to :meth:`end`."""

    def __init__(
        self,
        policy: Policy,
        robot: RosRobot,
        rate_hz: float | None,
        settings: LoopSettings,
        clock: Clock,
        *,
        estopped: bool,
        name: str = "control",
        figures: Path | None = None,
    ) -> None:
        """``estopped``: whether an emergency stop holds from the beginning; ``figures``: a folder for
        :mod:`edge_sdk.figures`, and ``name`` whose they are. Raises ConfigError for a wrong rate.
        """
        self._robot, self._name, self._figures = robot, name, figures
        self.ticks, self._counter = Ticks(at_stop=robot.close), Counter(policy.config.budget_ms)
        observers: list[Observer] = [self.ticks, self._counter]
        self._loop = ControlLoop(policy, robot, rate_hz, settings=settings, observers=observers, clock=clock)
        if estopped:
            self._loop.estop()
        self.report: Report | None = None
        """Of the run, once it has ended."""
        self.error: str | None = None
        """What ended it other than the loop itself."""
        self._asked = False
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._thread.start()

    @property
    def ended_by_itself(self) -> bool:
        """Whether the run is over although nobody asked for it."""
        return not self._asked and not self._thread.is_alive()

    @property
    def reason(self) -> str:
        """Why it ended."""
        if self.report is None:
            return self.error or "it has not ended"
        waited = f" while waiting for {self._robot.waiting_for}" if self._robot.waiting_for else ""
        return f"{self.report.ended}{waited}" + (f": {self.report.error}" if self.report.error else "")

    def estop(self) -> None:
        """Stops the robot here and now, and lets the loop send nothing more."""
        self._loop.estop()

    def reset_estop(self) -> None:
        """Lets the loop go on."""
        self._loop.reset_estop()

    def end(self) -> bool:
        """Ends the run; the robot is stopped then. False where an inference still computes."""
        self._asked = True
        self._loop.stop()
        self._robot.close()
        self._thread.join(END_TIMEOUT_S)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            with ExitStack() as ending:
                if self._figures is not None:
                    ending.enter_context(loop_figures(self._figures, self._name, self._counter.figures))
                self.report = self._loop.run()
        except Exception:  # the node says it and deactivates itself; the loop has stopped the robot
            self.error = traceback.format_exc()
