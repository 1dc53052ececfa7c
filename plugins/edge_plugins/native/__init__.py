"""The compiled kernels, where this installation has them: one library that ONNX Runtime loads."""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path

LIBRARY = Path(__file__).parent / "libedge_plugins_ort.so"

log = logging.getLogger("edge_plugins")


def native_library() -> Path | None:
    """Path of the custom-operator library; None where there is none, or none that this machine can load."""
    if not LIBRARY.is_file():
        return None
    try:
        ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        log.warning("%s is left aside, since it does not load: %s", LIBRARY, error)
        return None
    return LIBRARY
