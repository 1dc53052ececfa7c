"""Where a control node's policy comes from: a bundle, or a function that makes one. No ROS in it."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import edge_sdk
from edge_sdk.control.policy import Policy
from edge_sdk.errors import ConfigError, explain


def find_policy(path: str, entry: str, instruction: str = "") -> Policy:
    """The policy of a bundle, told what to do, or what ``module:function`` makes of the path.

    The function is called with the path, as a str that may be empty, and returns an ``edge_sdk.control.policy.Policy``.
    Raises ConfigError where there is neither or it cannot be found, and as ``edge_sdk.load_policy``; what a function
    raises is not caught.
    """
    if entry:
        return _function(entry)(path)
    todo = "Set the parameter policy to a bundle, or policy_entry to module:function."
    if not path:
        raise ConfigError(explain("The policy", expected="a bundle or a function", found="neither", todo=todo))
    return edge_sdk.load_policy(path, instruction=instruction)


def _function(entry: str) -> Callable[[str], Policy]:
    module, _, name = entry.partition(":")
    try:
        return getattr(import_module(module), name)  # type: ignore[no-any-return]
    except (ImportError, ValueError, AttributeError) as error:
        raise ConfigError(
            explain("policy_entry", expected="module:function", found=f"{entry!r}: {error}", todo="Correct it.")
        ) from None
