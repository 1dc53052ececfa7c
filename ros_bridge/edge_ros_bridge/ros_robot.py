"""A robot behind ROS topics, as the control loop wants it; what touches ROS is handed in, so there is none in here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edge_ros_bridge.matching import Match, StampMatcher
from edge_ros_bridge.sensors import Source
from edge_sdk.control.robot import TIME_KEY, ClosedError, FloatArray
from edge_sdk.errors import explain

POLL_S = 0.05
"""How often somebody who waits for an observation looks for what sends no news: subscribers and time."""


class RosRobot:
    """Observes the newest messages that belong together, and commands by publishing.

    An observation is waited for while it is too old, and while nobody listens to the commands: the policy is then
    silent, and the control loop brakes, rests and stops by its stages. The same one may be handed over again.

    Args:
        sources: Where each entry of the observation comes from.
        matcher: Brings their messages together.
        max_age_ns: The oldest that the oldest part of an observation may be.
        stamp_now_ns: The time by which messages are stamped.
        loop_now_ns: The time by which the loop runs.
        publish: Sends an action of shape (action_dim,).
        halt: Sends whatever stops the robot; called often and from any thread.
        has_listener: Whether somebody receives the commands.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        matcher: StampMatcher,
        *,
        max_age_ns: int,
        stamp_now_ns: Callable[[], int],
        loop_now_ns: Callable[[], int],
        publish: Callable[[FloatArray], None],
        halt: Callable[[], None],
        has_listener: Callable[[], bool],
    ) -> None:
        self._sources, self._matcher, self._max_age_ns = tuple(sources), matcher, max_age_ns
        self._stamp_now_ns, self._loop_now_ns = stamp_now_ns, loop_now_ns
        self._publish, self._halt, self._has_listener = publish, halt, has_listener
        self._news = threading.Condition()
        self._closed = False
        self.waiting_for: str | None = None
        """What an observation is waited for, in words; None while none is."""

    def receive(self, source: str, stamp_ns: int, message: Any) -> bool:
        """Takes one message; False for one whose stamp is later than now, which is dropped.

        A stamp of 0 was never set: the message counts as taken now.
        """
        now_ns = self._stamp_now_ns()
        if stamp_ns > now_ns + self._max_age_ns:
            return False
        self._matcher.add(source, stamp_ns or now_ns, message)
        with self._news:
            self._news.notify_all()
        return True

    def observe(self) -> dict[str, np.ndarray]:
        """The newest observation; waits for one.

        Raises ClosedError once :meth:`close` was called, SensorError and ImageError for messages that do not hold it.
        """
        with self._news:
            while (match := self._match()) is None:
                if self._closed:
                    todo = "Nothing: the run ends."
                    raise ClosedError(explain("An observation", expected="one", found="none", todo=todo))
                self._news.wait(POLL_S)
            self.waiting_for = None
        observation = {source.spec.name: source.read(match.values[source.spec.name]) for source in self._sources}
        age_ns = self._stamp_now_ns() - match.oldest_ns
        return observation | {TIME_KEY: np.asarray(self._loop_now_ns() - age_ns, dtype=np.int64)}

    def act(self, action: FloatArray) -> None:
        """Publishes one action of shape (action_dim,)."""
        self._publish(action)

    def stop(self) -> None:
        """Into the safe state."""
        self._halt()

    def close(self) -> None:
        """Ends the waiting for an observation, now and later."""
        with self._news:
            self._closed = True
            self._news.notify_all()

    def _match(self) -> Match | None:
        if self._closed:
            return None
        match = self._matcher.newest()
        if match is None:
            self.waiting_for = "messages whose stamps are close enough"
        elif self._stamp_now_ns() - match.oldest_ns > self._max_age_ns:
            self.waiting_for = "messages that are not too old"
        elif not self._has_listener():
            self.waiting_for = "a subscriber of the commands"
        else:
            return match
        return None
