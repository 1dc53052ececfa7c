"""The operators' CPU kernels: a custom-op library for ONNX Runtime, and ``_native``, the same on NumPy arrays.

Both are compiled by ``pip install``, from plugins/CMakeLists.txt. Where that failed everything runs on the operators'
function bodies, and :func:`missing_reason` says why.
"""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path

HERE = Path(__file__).parent
LIBRARY = HERE / "libedge_plugins_ort.so"
TENSORRT_LIBRARY = HERE / "libedge_plugins_trt.so"
BUILD_LOG = HERE / "build.log"
"""What the compiler said where it failed."""

log = logging.getLogger("edge_plugins")


def native_library() -> Path | None:
    """The library with the operators' kernels, for ``SessionOptions.register_custom_ops_library``.

    None where there is none, or none that this machine can load, which is logged.

    It reads session configuration entries as it is registered, so add these before: ``edge.exact`` (``1`` keeps
    activations in float32; default ``0``), ``edge.isa`` (an instruction set; default ``auto``),
    ``edge.packed_weights`` (a file that keeps the packed weights; default none) and ``edge.packed_key`` (a text that
    only these weights have, such as their sha256; a file of another key is made anew).
    """
    if not LIBRARY.is_file():
        return None
    try:
        ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        log.warning("%s is left aside, since it does not load: %s", LIBRARY, error)
        return None
    return LIBRARY


def missing_reason() -> str:
    """Why there is no :func:`native_library`, and what to do."""
    if BUILD_LOG.exists():
        return f"The native kernels did not compile at installation: the compiler's error is in {BUILD_LOG}."
    return "The native kernels were not compiled: install Edge SDK with `pip install .`, not by copying its files."


def tensorrt_library() -> Path | None:
    """The library with the operators' TensorRT plugins, or None where it was not compiled.

    It is not loaded here to be tried: that takes the CUDA of the machine that it runs on.
    """
    return TENSORRT_LIBRARY if TENSORRT_LIBRARY.is_file() else None


def missing_tensorrt_reason() -> str:
    """Why there is no :func:`tensorrt_library`, and what to do."""
    return "The TensorRT plugins were not compiled: docs/tensorrt.md says how."
