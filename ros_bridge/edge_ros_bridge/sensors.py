"""What a sensor's message holds, as arrays of a policy's observation: functions of any object with the fields."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_sdk.control.policy import ObservationSpec
from edge_sdk.errors import ConfigError, EdgeError, explain

IMU_FIELDS = tuple(f"{part}.{axis}" for part in ("angular_velocity", "linear_acceleration") for axis in "xyz")
ODOMETRY_FIELDS = (
    "pose.pose.position.x",
    "pose.pose.position.y",
    "yaw",
    "twist.twist.linear.x",
    "twist.twist.angular.z",
)
JOINT_PARTS = {"position": "position", "velocity": "velocity", "effort": "effort"}
"""How a joint's field ends, and the array of sensor_msgs/JointState that it is of."""

CHANNELS: Mapping[str, slice] = {
    "rgb8": slice(0, 3),
    "bgr8": slice(2, None, -1),
    "rgba8": slice(0, 3),
    "bgra8": slice(2, None, -1),
    "mono8": slice(0, 1),
}
"""Where red, green and blue are in a pixel of sensor_msgs/Image, by its encoding; of mono8 they are the same."""

BYTES_PER_PIXEL = {"mono8": 1, "rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4}


class SensorError(EdgeError):
    """A message does not hold what the policy needs."""


def joint_vector(message: Any, fields: Sequence[str]) -> np.ndarray:
    """(size,) float32 of a sensor_msgs/JointState: fields such as ``shoulder.position``, by the joints' names.

    Joints may come in any order, and there may be others. Raises SensorError for one that is missing.
    """
    at = {name: index for index, name in enumerate(message.name)}
    values = []
    for field in fields:
        joint, _, part = field.rpartition(".")
        numbers = getattr(message, JOINT_PARTS[part])
        index = at.get(joint, len(numbers))
        if index >= len(numbers):
            raise SensorError(
                explain(f"The joint {joint!r}", expected=f"a {part}", found="none", todo="See the message's sender.")
            )
        values.append(numbers[index])
    return np.array(values, dtype=np.float32)


def fields_vector(message: Any, fields: Sequence[str]) -> np.ndarray:
    """(size,) float32 of any message's numbers by their paths; ``yaw`` is that of the pose's orientation, in rad."""
    return np.array([_number(message, field) for field in fields], dtype=np.float32)


def _number(message: Any, field: str) -> float:
    if field == "yaw":
        return yaw_of(message.pose.pose.orientation)
    for name in field.split("."):
        message = getattr(message, name)
    return float(message)


def yaw_of(q: Any) -> float:
    """The angle around z of a quaternion, in rad, right-handed (REP 103)."""
    return math.atan2(2 * (q.w * q.z + q.x * q.y), 1 - 2 * (q.y * q.y + q.z * q.z))


def picture_of(message: Any) -> np.ndarray:
    """RGB (height, width, 3) uint8 of a sensor_msgs/Image: a view of its bytes, whatever their order.

    Raises SensorError for an encoding that is none of CHANNELS, and for too few bytes.
    """
    size = BYTES_PER_PIXEL.get(message.encoding)
    if size is None:
        expected = f"one of {', '.join(BYTES_PER_PIXEL)}"
        raise SensorError(
            explain("The image's encoding", expected=expected, found=message.encoding, todo="Convert it.")
        )
    height, width, step = message.height, message.width, message.step
    content = np.frombuffer(message.data, dtype=np.uint8)
    if step < width * size or content.size < height * step or height * width == 0:
        found = f"{content.size} bytes in rows of {step}"
        raise SensorError(
            explain("The image", expected=f"{height} rows of {width} pixels", found=found, todo="Send it whole.")
        )
    pixels = content[: height * step].reshape(height, step)[:, : width * size].reshape(height, width, size)
    return np.broadcast_to(pixels[:, :, CHANNELS[message.encoding]], (height, width, 3))


def compressed_picture(message: Any) -> np.ndarray:
    """RGB (height, width, 3) uint8 of a sensor_msgs/CompressedImage, JPEG or PNG. Raises ImageError."""
    from edge_sdk.images import decode_picture

    return decode_picture(bytes(message.data))


def fitted(picture: np.ndarray, spec: ObservationSpec) -> np.ndarray:
    """A picture (height, width, 3) as an observation's shape wants it: resampled where the size differs.

    One of the right size is copied where its pixels do not lie row by row, red first, and else not at all.
    """
    height, width, _ = spec.shape
    if picture.shape[:2] != (height, width):
        from edge_sdk.images import resized

        picture = resized(picture, height, width, "bilinear")
    return np.ascontiguousarray(picture)


@dataclass(frozen=True)
class Source:
    """Where one entry of an observation comes from. Raises ConfigError where that cannot be."""

    spec: ObservationSpec
    type: str
    """One of SENSORS."""
    topic: str
    fields: tuple[str, ...] = ()
    """Of a vector: one for each of its numbers."""

    def __post_init__(self) -> None:
        what = f"The source of {self.spec.name!r}"
        if self.type not in SENSORS or SENSORS[self.type].kind != self.spec.kind:
            fitting = ", ".join(name for name, sensor in SENSORS.items() if sensor.kind == self.spec.kind)
            raise ConfigError(explain(what, expected=f"one of {fitting}", found=self.type, todo="Correct its type."))
        if self.spec.kind == "vector" and len(self.fields) != self.spec.shape[0]:
            found, todo = f"{len(self.fields)} fields", "Name them in its fields."
            raise ConfigError(explain(what, expected=f"{self.spec.shape[0]} fields", found=found, todo=todo))
        if self.spec.kind == "image" and self.spec.shape[2] != 3:
            raise ConfigError(explain(what, expected="three channels", found=self.spec.shape, todo="Use another."))
        if self.type == "joint_state":
            wrong = [field for field in self.fields if field.rpartition(".")[2] not in JOINT_PARTS]
            if wrong:
                expected = "names that end in .position, .velocity or .effort"
                raise ConfigError(explain(what, expected=expected, found=", ".join(wrong), todo="Correct its fields."))

    def read(self, message: Any) -> np.ndarray:
        """The observation's array of one message. Raises SensorError or ImageError."""
        return SENSORS[self.type].read(message, self)


@dataclass(frozen=True)
class Sensor:
    """One kind of message."""

    message: str
    """``package/Name``"""
    kind: str
    topic: str
    """Its usual name."""
    read: Callable[[Any, Source], np.ndarray]


SENSORS: Mapping[str, Sensor] = {
    "joint_state": Sensor(
        "sensor_msgs/JointState", "vector", "joint_states", lambda message, source: joint_vector(message, source.fields)
    ),
    "imu": Sensor("sensor_msgs/Imu", "vector", "imu", lambda message, source: fields_vector(message, source.fields)),
    "odometry": Sensor(
        "nav_msgs/Odometry", "vector", "odom", lambda message, source: fields_vector(message, source.fields)
    ),
    "image": Sensor(
        "sensor_msgs/Image", "image", "image", lambda message, source: fitted(picture_of(message), source.spec)
    ),
    "compressed_image": Sensor(
        "sensor_msgs/CompressedImage",
        "image",
        "image/compressed",
        lambda message, source: fitted(compressed_picture(message), source.spec),
    ),
}


def usual_fields(sensor: str, joints: Sequence[str]) -> tuple[str, ...]:
    """The fields that are read where none are named: all joints' positions, the IMU's rates, the planar odometry."""
    if sensor == "joint_state":
        return tuple(f"{joint}.position" for joint in joints)
    return {"imu": IMU_FIELDS, "odometry": ODOMETRY_FIELDS}.get(sensor, ())
