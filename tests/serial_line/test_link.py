"""The host's end of a session: what it accepts, and that it never lets a command live too long."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.control.frames import (
    MAX_TTL_MS,
    SEQUENCE_WINDOW,
    Alive,
    Command,
    Fault,
    Frame,
    Heartbeat,
    Message,
    Observation,
    Result,
    State,
    Welcome,
    decode,
)
from edge_sdk.control.link import HostLink
from simulated_robot import SCHEMA

VALUES = np.arange(SCHEMA.observation_dim, dtype=np.float32)
MS = 1_000_000


@pytest.fixture
def link() -> HostLink:
    link = HostLink(SCHEMA, 100, 0)
    assert receive(link, 10, Welcome(SCHEMA.hash, 80, 5000, State.STOPPED)) is Result.ACCEPTED
    return link


def receive(link: HostLink, sequence: int, message: Message, now_ns: int = 0, session: int | None = None) -> Result:
    return link.receive(Frame(link.session if session is None else session, sequence, message), now_ns)


def test_a_frame_is_accepted_once_and_in_order(link: HostLink) -> None:
    assert link.ready
    assert link.timeout_ms == 80
    beat = Heartbeat(5000, State.RUNNING)
    assert receive(link, 11, beat) is Result.ACCEPTED
    assert link.state is State.RUNNING
    assert receive(link, 11, beat) is Result.DUPLICATE
    assert receive(link, 10, beat) is Result.OLD
    assert receive(link, 11 + SEQUENCE_WINDOW + 1, beat) is Result.AHEAD
    assert receive(link, 11 + SEQUENCE_WINDOW, beat) is Result.ACCEPTED
    assert receive(link, 11, beat) is Result.OLD


def test_sequence_numbers_wrap() -> None:
    link = HostLink(SCHEMA, 100, 0)
    beat = Heartbeat(0, State.STOPPED)
    assert receive(link, 2**32 - 1, beat) is Result.ACCEPTED
    assert receive(link, 0, beat) is Result.ACCEPTED
    assert receive(link, 2**32 - 1, beat) is Result.OLD


def test_what_is_not_for_this_session_or_not_for_a_host_is_dropped(link: HostLink) -> None:
    beat = Heartbeat(5000, State.RUNNING)
    assert receive(link, 11, beat, session=link.session ^ 1) is Result.BAD_SESSION
    assert receive(link, 11, Command(0, VALUES)) is Result.DIRECTION
    assert receive(link, 11, Alive()) is Result.DIRECTION
    assert receive(link, 11, Observation(5000, State.RUNNING, VALUES[:-1])) is Result.BAD_VALUE
    assert link.state is State.STOPPED
    assert link.observation is None


def test_a_link_is_lost_when_nothing_valid_came(link: HostLink) -> None:
    assert not link.lost(79 * MS)
    assert receive(link, 10, Heartbeat(0, 0), now_ns=79 * MS) is Result.DUPLICATE
    assert link.lost(80 * MS)
    assert receive(link, 11, Heartbeat(0, 0), now_ns=80 * MS) is Result.ACCEPTED
    assert not link.lost(159 * MS)


@pytest.mark.parametrize("answer", [Fault(1, 0xABC), Welcome(0xABC, 80, 0, State.STOPPED)])
def test_another_robot_is_refused_whichever_end_notices(answer: Message) -> None:
    link = HostLink(SCHEMA, 100, 0)
    assert receive(link, 1, answer) is Result.REFUSED
    assert not link.ready
    assert "found schema 0x0000000000000abc" in str(link.explain_fault())


@given(
    start_ms=st.integers(0, 2**32 - 1),
    speed=st.floats(0.98, 1.02),
    delays_ms=st.lists(st.floats(0, 500), min_size=1, max_size=30),
    ttl_ms=st.integers(1, MAX_TTL_MS - 1),
)
def test_a_command_never_lives_longer_than_it_should(
    start_ms: int, speed: float, delays_ms: list[float], ttl_ms: int
) -> None:
    """Whatever the robot's clock and the delays of its frames, which arrive in order."""
    link = HostLink(SCHEMA, 100, 0)
    arrived_ms = 0.0
    for i, delay_ms in enumerate(delays_ms):
        taken_ms = 50.0 * i
        arrived_ms = max(arrived_ms, taken_ms + delay_ms)
        robot_ms = int(start_ms + speed * taken_ms) % 2**32
        message = Observation(robot_ms, State.RUNNING, VALUES)
        assert receive(link, i, message, int(arrived_ms * MS)) is Result.ACCEPTED
        assert link.observed_ns <= arrived_ms * MS + 1
        truth_ms = start_ms + speed * arrived_ms
        left_ms = (link.expiry(ttl_ms, int(arrived_ms * MS)) - truth_ms + 2**31) % 2**32 - 2**31
        assert left_ms <= ttl_ms
    # and where the delay was nothing the last time, it is not much shorter either
    now_ns = int((arrived_ms + 50) * MS)
    receive(link, len(delays_ms), Heartbeat(int(start_ms + speed * (arrived_ms + 50)) % 2**32, 0), now_ns)
    left_ms = (link.expiry(ttl_ms, now_ns) - (start_ms + speed * (arrived_ms + 50)) + 2**31) % 2**32 - 2**31
    assert left_ms >= ttl_ms - 3


def test_each_session_and_each_frame_has_its_own_number() -> None:
    link = HostLink(SCHEMA, 100, 0)
    wires = [link.hello(), link.alive(), link.command(np.zeros(2, np.float32), 7), link.stop(), link.estop()]
    sent = [decode(wire[1:-1]) for wire in wires]
    assert all(isinstance(frame, Frame) for frame in sent)
    assert [frame.sequence for frame in sent if isinstance(frame, Frame)] == [1, 2, 3, 4, 5]
    assert {frame.session for frame in sent if isinstance(frame, Frame)} == {link.session}
    assert len({HostLink(SCHEMA, 100, 0).session for _ in range(50)} | {0}) == 51
