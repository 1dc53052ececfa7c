"""What a node offers, as data: parameters, topics and services. The nodes are made from it, and so are the docs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Value = bool | int | float | str | list[str]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a node."""

    name: str
    default: Value
    what: str
    low: float | None = None
    high: float | None = None
    """Limits of a number, both or none."""
    live: bool = False
    """May be changed at any time; the others only while the node is unconfigured."""


@dataclass(frozen=True)
class Qos:
    """The defaults of a topic; each may be overridden by a parameter ``qos_overrides.<topic>...``."""

    depth: int = 10
    reliability: Literal["reliable", "best_effort"] = "reliable"
    durability: Literal["volatile", "transient_local"] = "volatile"

    def __str__(self) -> str:
        return f"{self.reliability}, {self.durability}, {self.depth}"


@dataclass(frozen=True)
class Topic:
    """One topic."""

    name: str
    type: str
    """``package/Name``; what it depends on, in words, where a parameter says."""
    direction: Literal["in", "out"]
    what: str
    qos: Qos = Qos()


@dataclass(frozen=True)
class Service:
    """One service or action."""

    name: str
    type: str
    what: str


@dataclass(frozen=True)
class Interface:
    """All that a node offers."""

    node: str
    parameters: tuple[Parameter, ...]
    topics: tuple[Topic, ...]
    services: tuple[Service, ...]

    def topic(self, name: str) -> Topic:
        """One of the topics. Raises KeyError."""
        return {topic.name: topic for topic in self.topics}[name]


BUNDLE_AUTOSTART = Parameter(
    "autostart", False, "Configure and activate at start, without a lifecycle manager; a failure ends the process"
)
ERROR = Topic("~/error", "std_msgs/String", "out", "What is wrong, in words; in every state")
DIAGNOSTICS = Topic("/diagnostics", "diagnostic_msgs/DiagnosticArray", "out", "Once a second, in every state")

LAST, RECENT = Qos(depth=1, durability="transient_local"), Qos(depth=10, durability="transient_local")
"""Of topics whose last messages reach those who come late."""

LANGUAGE = Interface(
    node="language",
    parameters=(
        Parameter("bundle", "", "Path of the bundle to load"),
        Parameter("max_new_tokens", 128, "Longest answer in tokens; one that is cut off is not driven", 1, 1e6, True),
        Parameter("deadline_ms", 0.0, "Longest time of an answer in ms; 0 is any", 0, 1e7, True),
        Parameter("temperature", 0.0, "0 takes the likeliest token, more draws", 0, 100, True),
        Parameter("priority", 0, "Of the prompts of ~/prompt among all that want the model", -100, 100, True),
        Parameter("queue_size", 8, "How many prompts, and how many goals, may wait; more are refused", 1, 1000),
        Parameter("slots", 1, "Answers that are made at the same time, step by step together", 1, 64),
        Parameter("threads", 0, "Of the model; 0 is all cores. Fewer leave cores to whoever talks to the node", 0, 256),
        Parameter("session_folder", "", "Where ~/session saves sessions and restores them from; none: it does not"),
        Parameter("drive", True, "Turn answers into velocities; false for a model that only talks"),
        Parameter("linear_speed", 0.5, "Highest forward speed in m/s", 0.01, 10.0),
        Parameter("angular_speed", 1.5707963267948966, "Highest turning speed in rad/s", 0.01, 20.0),
        Parameter("rate_hz", 20.0, "Velocities per second", 1.0, 200.0),
        BUNDLE_AUTOSTART,
    ),
    topics=(
        Topic("~/prompt", "std_msgs/String", "in", "A prompt; each is a conversation of its own"),
        Topic("~/tokens", "std_msgs/String", "out", "The text that each token adds, as it comes", Qos(depth=100)),
        Topic(
            "~/pieces",
            "edge_sdk_msgs/Piece",
            "out",
            "The same of prompts and of goals, with index and request",
            Qos(depth=100),
        ),
        Topic(
            "~/text",
            "std_msgs/String",
            "out",
            "The whole answer; who comes later gets the last one",
            LAST,
        ),
        Topic("cmd_vel", "geometry_msgs/Twist", "out", "The motion; its last message is all zeros, idle is silent"),
        ERROR,
        DIAGNOSTICS,
    ),
    services=(
        Service("~/cancel", "std_srvs/Trigger", "Ends the answer after its current step, and drops all that wait"),
        Service("~/generate", "edge_sdk_msgs/action/Generate", "An action: answers a conversation, piece by piece"),
        Service("~/session", "edge_sdk_msgs/srv/ManageSession", "Saves, restores, forks, resets, closes a session"),
    ),
)

CONTROL = Interface(
    node="control",
    parameters=(
        Parameter("policy", "", "Path of the policy's bundle; with policy_entry, what that function is given"),
        Parameter("policy_entry", "", "module:function that makes the policy instead of a bundle; it runs as the node"),
        Parameter("instruction", "", "What to do, where the bundle's policy reads a text"),
        Parameter("command", "twist", "What is sent: one of the commands below"),
        Parameter("command_topic", "", "Its topic; none is the usual one"),
        Parameter("frame_id", "base_link", "The frame of stamped commands (REP 105)"),
        Parameter("tolerance_ms", 20.0, "How far apart the stamps of an observation's messages may be", 0, 1e4),
        Parameter("max_age_ms", 200.0, "How old the oldest of them may be", 1, 1e5),
        Parameter("rate_hz", 0.0, "Commands per second; 0 is the policy's own rate", 0, 1000),
        Parameter("hold_after_ms", 100.0, "Silence of the policy after which the robot brakes and holds", 0, 1e5),
        Parameter("decay_after_ms", 300.0, "Silence after which it goes to rest", 0, 1e5),
        Parameter("stop_after_ms", 1000.0, "Silence after which the run ends, and the node is inactive", 0, 1e5),
        Parameter(
            "figures", "", "Folder where it says each second what came too late, for `edge-sdk slots`; none: not"
        ),
        Parameter("require_subscriber", True, "Nobody who listens to the commands counts as silence", live=True),
        BUNDLE_AUTOSTART,
    ),
    topics=(
        Topic(
            "~/estop", "std_msgs/Bool", "in", "true stops the robot and latches; false releases nothing", Qos(depth=1)
        ),
        Topic(
            "~/estopped",
            "std_msgs/Bool",
            "out",
            "Whether the stop is latched",
            LAST,
        ),
        Topic(
            "~/step", "std_msgs/String", "in", "A step of a plan as JSON, for a policy that does steps", Qos(depth=1)
        ),
        Topic("~/progress", "std_msgs/String", "out", "What became of the step, as JSON", RECENT),
        ERROR,
        DIAGNOSTICS,
    ),
    services=(
        Service("~/estop", "std_srvs/SetBool", "true stops the robot and latches; false releases that, if it may be"),
    ),
)

INSTRUCT = Interface(
    node="instruct",
    parameters=(
        Parameter("bundle", "", "Path of the language model's bundle"),
        Parameter("format", "json", "How the model says a plan: json, or words, the names of its steps"),
        Parameter("step_names", [], "The steps that a plan may have; each has the parameters below"),
        Parameter("max_steps", 64, "Longest plan; a longer one is refused", 1, 1000),
        Parameter("system_prompt", "", "What the model is told before the instruction; none: json models, the steps"),
        Parameter("max_new_tokens", 256, "Longest answer in tokens; one that is cut off is not driven", 1, 1e6),
        Parameter("deadline_ms", 10000.0, "Longest time of an answer in ms; 0 is any", 0, 1e7),
        Parameter("lease_ms", 1000.0, "How long the robot goes on when this node falls silent", 200, 60000),
        BUNDLE_AUTOSTART,
    ),
    topics=(
        Topic("~/instruction", "std_msgs/String", "in", "What to do, in plain words; takes the place of the last"),
        Topic(
            "~/plan",
            "std_msgs/String",
            "out",
            "The valid plan as JSON, before it is driven; who comes later gets the last one",
            LAST,
        ),
        Topic(
            "~/status",
            "std_msgs/String",
            "out",
            "What becomes of the instruction, as JSON",
            RECENT,
        ),
        Topic(
            "control/step",
            "std_msgs/String",
            "out",
            "The step to do now, again and again; empty is to stand",
            Qos(depth=1),
        ),
        Topic("control/progress", "std_msgs/String", "in", "What the control node says of it", RECENT),
        ERROR,
        DIAGNOSTICS,
    ),
    services=(Service("~/cancel", "std_srvs/Trigger", "Forgets the instruction; the robot stands"),),
)

RECORD = Interface(
    node="record",
    parameters=(
        Parameter("folder", "", "Where bags are made, each in a folder of its own, named by the time"),
        Parameter("topics", [], "What is recorded; none: every topic that is not hidden"),
        Parameter("depth", 100, "Messages of a topic that may wait while this process is busy", 1, 100_000),
        BUNDLE_AUTOSTART,
    ),
    topics=(ERROR, DIAGNOSTICS),
    services=(),
)

SENSOR_QOS = Qos(depth=5, reliability="best_effort")
COMMAND_QOS = Qos(depth=1)

SOURCE_PARAMETERS = (
    Parameter("type", "", "One of the sensors below; by default image or joint_state, as the policy's entry is"),
    Parameter("topic", "", "Its topic; none is the usual one"),
    Parameter("fields", [], "Of a vector: which numbers, in their order; by default those below"),
)
"""What ``sources.<name of the observation>.`` says; declared when the policy is known."""

STEP_PARAMETERS = (
    Parameter("motion", "", "forward (m), turn (rad, to the left), wait (s), jump (s) or look (s)"),
    Parameter("low", 0.0, "The least amount, in the motion's unit", -1000, 1000),
    Parameter("high", 0.0, "The greatest; where it equals the least, a plan names no amount", -1000, 1000),
    Parameter("timeout_s", 10.0, "The longest that the step may take", 0.1, 1000),
)
"""What ``steps.<name of the step>.`` says; declared when the node is configured."""
