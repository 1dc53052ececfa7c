"""What messages are made of, by the .msg files of a ROS install: for bags, whose readers have none. No ROS in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_ros_bridge.bag import BagError
from edge_sdk.errors import explain

if TYPE_CHECKING:
    from rosbags.typesys.store import Typestore


def share_folders() -> list[Path]:
    """Where packages keep what is no code: by the environment of a ROS install, and where pip puts it."""
    prefixes = [*filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)), sys.prefix]
    return [Path(prefix) / "share" for prefix in prefixes]


def types_of(kind: str) -> Typestore:
    """The definition of a message, ``package/msg/Name``, and of all that it is made of.

    Raises BagError where there is no file of it.
    """
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    found: dict[str, Any] = {}
    wanted = [kind]
    while wanted:
        name = wanted.pop()
        if name not in found:
            found |= get_types_from_msg(_definition(name), name)
            wanted += [part for _, field in found[name][1] for part in _names(field)]
    store = get_typestore(Stores.EMPTY)
    store.register(found)
    return store


def _definition(kind: str) -> str:
    package, _, name = kind.split("/")
    for folder in share_folders():
        path = folder / package / "msg" / f"{name}.msg"
        if path.exists():
            return path.read_text(encoding="utf-8")
    todo = "Install the package, or source its setup.bash."
    expected = f"{package}/msg/{name}.msg in one of {', '.join(map(str, share_folders()))}"
    raise BagError(explain(f"The definition of {kind}", expected=expected, found="none", todo=todo))


def _names(field: Any) -> Iterator[str]:
    """The messages that a field's type, as rosbags describes it, is made of."""
    from rosbags.interfaces import Nodetype

    node, content = field
    if node == Nodetype.NAME:
        yield content
    elif node != Nodetype.BASE:
        yield from _names(content[0])
