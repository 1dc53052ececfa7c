"""Feetech STS and SMS servos through their vendor's ``ftservo-python-sdk``."""

from __future__ import annotations

from functools import partial

from edge_sdk.control.servos import ControlTable, Register, Sdk, ServoBus, ServoConfig, ServoRobot

_SIGN = 1 << 15

# Control table of the STS series, by the addresses in the vendor's SDK; a negative position is a magnitude and a sign.
TABLE = ControlTable(
    torque=Register(40, 1),
    goal=Register(42, 2),
    position=Register(56, 2),
    to_wire=lambda ticks: ticks if ticks >= 0 else -ticks | _SIGN,
    from_wire=lambda value: -(value & ~_SIGN) if value & _SIGN else value,
)


def open_feetech_bus(config: ServoConfig) -> ServoBus:
    """Opens the port. Raises OSError or LinkError."""
    import scservo_sdk

    port = scservo_sdk.PortHandler(config.port)
    packets = scservo_sdk.sms_sts(port)
    sdk = Sdk(
        port=port,
        sync_read=lambda register: scservo_sdk.GroupSyncRead(packets, *register),
        sync_write=lambda register: scservo_sdk.GroupSyncWrite(packets, *register),
        describe=packets.getTxRxResult,
    )
    return ServoBus(config, TABLE, sdk)


def feetech_robot(config: ServoConfig) -> ServoRobot:
    """The servos of a bus, in position mode. Needs the extra ``feetech``."""
    return ServoRobot(config, partial(open_feetech_bus, config))
