"""The lifecycle node ``record``: writes what the other nodes say into a bag that ``ros2 bag`` and Foxglove open.

python -m edge_ros_bridge.record_node --ros-args -p folder:=recordings -p autostart:=true
"""

# mypy: allow-subclassing-any
# where rclpy is not installed its classes are Any

from __future__ import annotations

import sys
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from edge_ros_bridge.bag import Bag, BagError, require_rosbags
from edge_ros_bridge.commands import message_class
from edge_ros_bridge.counting import Status
from edge_ros_bridge.definitions import types_of
from edge_ros_bridge.interface import RECORD
from edge_ros_bridge.node import BridgeNode, logged, run
from edge_sdk.errors import explain

LOOK_S = 0.2
"""How soon a topic that has just appeared is recorded."""

NAME = "rosbag2_%Y_%m_%d-%H_%M_%S"
"""Of a bag, as ``ros2 bag record`` names them."""


class RecordNode(BridgeNode):
    """Records while active, each time into a bag of its own; inactive again when it cannot write."""

    def __init__(self, **options: Any) -> None:
        super().__init__(RECORD, **options)
        self._bag: Bag | None = None
        self._made: dict[str, Any] = {}
        """Subscriptions by topic; None where a topic cannot be recorded."""
        self.create_timer(LOOK_S, self._look, clock=Clock(clock_type=ClockType.STEADY_TIME))

    @logged
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Looks whether it could record; FAILURE, with the reason logged, leaves the node unconfigured."""
        require_rosbags()
        if not Path(self.value("folder")).is_dir():
            found = self.value("folder") or "none"
            raise BagError(explain("The parameter folder", expected="a folder", found=found, todo="Make it first."))
        return super().on_configure(state)

    @logged
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begins a bag."""
        self._bag = Bag(Path(self.value("folder")) / datetime.now().strftime(NAME))
        self._look()
        return super().on_activate(state)

    def status(self) -> Status:
        """What the diagnostics say of this node."""
        bag = self._bag
        if bag is None:
            return Status("ok", self.state)
        values = {"bag": str(bag.folder), "topics": str(sum(made is not None for made in self._made.values()))}
        values |= {"messages": str(bag.written.total()), "dropped": str(bag.dropped.total())}
        return Status("warn" if bag.dropped else "ok", "messages are dropped" if bag.dropped else self.state, values)

    def finish(self) -> None:
        """Before the process ends: completes the bag."""
        self.halt()

    def halt(self) -> None:
        """Completes the bag."""
        for made in filter(None, self._made.values()):
            self.destroy_subscription(made)
        self._made = {}
        bag, self._bag = self._bag, None
        if bag is not None:
            bag.close()
            lost = f", {bag.dropped.total()} dropped" if bag.dropped else ""
            self.get_logger().info(f"{bag.folder}: {bag.written.total()} messages{lost}")
            if bag.error:
                self.report(f"{bag.error}. What was on the disk by then: python -m edge_ros_bridge.bag FOLDER NEW")

    def free(self) -> None:
        """Nothing is held while inactive."""

    def _look(self) -> None:
        """Subscribes to topics that have appeared; ends when nothing can be written any more."""
        bag = self._bag
        if bag is None:
            return
        if bag.error:
            self.trigger_deactivate()
            return
        wanted = [self.resolve_topic_name(name) for name in self.value("topics") or ()]
        for topic, kinds in self.get_topic_names_and_types():
            hidden = any(part.startswith("_") for part in topic.split("/"))
            if topic not in self._made and (topic in wanted if wanted else not hidden):
                self._add(bag, topic, kinds)

    def _add(self, bag: Bag, topic: str, kinds: list[str]) -> None:
        """Records a topic, once somebody publishes it: only then it is known with which QoS."""
        offered = [publisher.qos_profile for publisher in self.get_publishers_info_by_topic(topic)]
        if not offered:
            return
        try:
            if len(kinds) != 1:
                raise BagError(f"{topic} has several types, {', '.join(kinds)}: it is not recorded.")
            types = types_of(kinds[0])
            kind = message_class(kinds[0].replace("/msg/", "/"))
        except (BagError, ImportError, AttributeError) as error:
            self._made[topic] = None
            self.report(f"{topic} is not recorded: {error}")
            return
        bag.add_topic(topic, kinds[0], types, [_plain(qos) for qos in offered])
        receive = partial(self._receive, bag, topic)
        self._made[topic] = self.subscription(kind, topic, receive, _heard(offered, self.value("depth")), raw=True)

    def _receive(self, bag: Bag, topic: str, data: bytes) -> None:
        bag.write(topic, int(self.get_clock().now().nanoseconds), data)


def _heard(offered: list[QoSProfile], depth: int) -> QoSProfile:
    """The QoS that hears all of a topic's publishers, and of those that keep messages the kept ones."""
    reliable = all(qos.reliability == ReliabilityPolicy.RELIABLE for qos in offered)
    kept = all(qos.durability == DurabilityPolicy.TRANSIENT_LOCAL for qos in offered)
    return QoSProfile(
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if kept else DurabilityPolicy.VOLATILE,
    )


def _plain(qos: QoSProfile) -> Any:
    """A profile as rosbags has it."""
    from rosbags import interfaces

    times = [divmod(each.nanoseconds, 10**9) for each in (qos.deadline, qos.lifespan, qos.liveliness_lease_duration)]
    deadline, lifespan, lease = (interfaces.QosTime(*each) for each in times)
    return interfaces.Qos(
        interfaces.QosHistory[qos.history.name],
        qos.depth,
        interfaces.QosReliability[qos.reliability.name],
        interfaces.QosDurability[qos.durability.name],
        deadline,
        lifespan,
        interfaces.QosLiveliness[qos.liveliness.name],
        lease,
        qos.avoid_ros_namespace_conventions,
    )


def main(args: list[str] | None = None) -> int:
    """Runs the node until SIGINT or SIGTERM. Exit code 1 when autostart was asked for and failed."""
    return run([RecordNode], args)


if __name__ == "__main__":
    sys.exit(main())
