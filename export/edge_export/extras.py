"""Packages that only some commands need, imported when they are."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

from edge_sdk.errors import ConfigError, explain


def imported(module: str, *, extra: str, needed_by: str) -> ModuleType:
    """The package of a module that is imported, as ``import a.b`` gives a.

    Raises ConfigError where it is missing, with the extra of ours that brings it.
    """
    package = module.partition(".")[0]
    try:
        import_module(module)
    except ImportError:
        todo = f"pip install 'edge-sdk[{extra}]'"
        raise ConfigError(explain(needed_by, expected=f"the package {package}", found="none", todo=todo)) from None
    return sys.modules[package]
