"""The operators of domain ``edge``: one folder each, which holds everything about it."""

from edge_plugins.native import missing_reason, missing_tensorrt_reason, native_library, tensorrt_library
from edge_plugins.operator import DOMAIN, OPSET_VERSION, Operator
from edge_plugins.registry import OPERATORS

__all__ = [
    "DOMAIN",
    "OPERATORS",
    "OPSET_VERSION",
    "Operator",
    "missing_reason",
    "missing_tensorrt_reason",
    "native_library",
    "tensorrt_library",
]
