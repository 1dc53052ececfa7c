"""Dynamixel X servos (protocol 2.0) through their vendor's ``dynamixel-sdk``."""

from __future__ import annotations

from functools import partial

from edge_sdk.control.servos import ControlTable, Register, Sdk, ServoBus, ServoConfig, ServoRobot

# Control table of the X series, https://emanual.robotis.com/docs/en/dxl/x/xl430-w250/
TABLE = ControlTable(
    torque=Register(64, 1),
    goal=Register(116, 4),
    position=Register(132, 4),
    watchdog=Register(98, 1),
    to_wire=lambda ticks: ticks % (1 << 32),
    from_wire=lambda value: (value + (1 << 31)) % (1 << 32) - (1 << 31),
)


def open_dynamixel_bus(config: ServoConfig) -> ServoBus:
    """Opens the port. Raises OSError or LinkError."""
    import dynamixel_sdk

    port, packets = dynamixel_sdk.PortHandler(config.port), dynamixel_sdk.PacketHandler(2.0)
    sdk = Sdk(
        port=port,
        sync_read=lambda register: dynamixel_sdk.GroupSyncRead(port, packets, *register),
        sync_write=lambda register: dynamixel_sdk.GroupSyncWrite(port, packets, *register),
        describe=packets.getTxRxResult,
    )
    return ServoBus(config, TABLE, sdk)


def dynamixel_robot(config: ServoConfig) -> ServoRobot:
    """The servos of a bus, in position mode. Needs the extra ``dynamixel``."""
    return ServoRobot(config, partial(open_dynamixel_bus, config))
