"""Feetech STS and SMS servos through their vendor's ``ftservo-python-sdk``."""

from __future__ import annotations

from edge_sdk.control.servos import ControlTable, Register, Sdk, ServoBus, ServoConfig, ServoRobot

_SIGN = 1 << 15

# Control table of the STS series, as the vendor's SDK names its addresses; a negative position is a magnitude with a sign bit.
TABLE = ControlTable(
    torque=Register(40, 1),
    goal=Register(42, 2),
    position=Register(56, 2),
    to_wire=lambda ticks: ticks if ticks >= 0 else -ticks | _SIGN,
    from_wire=lambda value: -(value & ~_SIGN) if value & _SIGN else value,
)


def feetech_robot(config: ServoConfig) -> ServoRobot:
    """The servos of a bus, in position mode. Needs the extra ``feetech``."""
    import scservo_sdk

    def open_bus() -> ServoBus:
        port = scservo_sdk.PortHandler(config.port)
        packets = scservo_sdk.sms_sts(port)
        sdk = Sdk(
            port=port,
            sync_read=lambda register: scservo_sdk.GroupSyncRead(packets, *register),
            sync_write=lambda register: scservo_sdk.GroupSyncWrite(packets, *register),
            describe=packets.getTxRxResult,
        )
        return ServoBus(config, TABLE, sdk)

    return ServoRobot(config, open_bus)
