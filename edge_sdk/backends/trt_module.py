"""Finds TensorRT: NVIDIA's ``tensorrt`` or ``tensorrt_rtx``, and our plugins in it. Imported only when it is needed."""

from __future__ import annotations

import ctypes
import platform
from importlib import import_module
from pathlib import Path
from typing import Any

from edge_plugins import missing_tensorrt_reason, tensorrt_library
from edge_sdk.engine_files import Backend
from edge_sdk.errors import BackendError, explain

MODULES: dict[Backend, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}

RTX_NAME = "libtensorrt_rtx.so"
RTX_NAME_LIBRARY = "libedge_tensorrt_rtx_name.so"
"""Beside the plugin library: an empty library that answers to RTX_NAME (plugins/CMakeLists.txt says why)."""

_loaded: dict[str, Path] = {}
"""The plugin library that each module has: TensorRT refuses to register one twice."""

_loggers: dict[str, Any] = {}
"""The logger that each module has."""


def import_tensorrt(backend: Backend) -> Any:
    """The module of a backend. Raises BackendError where it is missing or its libraries do not load."""
    try:
        return import_module(MODULES[backend])
    except (ImportError, OSError) as error:
        raise BackendError(
            explain(f"The backend {backend}", expected=MODULES[backend], found=error, todo=_installing(backend))
        ) from None


def _installing(backend: Backend) -> str:
    if backend == "tensorrt-rtx":
        return "pip install 'edge-sdk[tensorrt-rtx]'"
    if platform.machine() == "aarch64":
        return "JetPack brings it to a Jetson: use a virtual environment made with --system-site-packages."
    return "pip install 'edge-sdk[tensorrt]'"


def logger_of(trt: Any) -> Any:
    """The logger of a TensorRT, which keeps the messages of what is done from now on.

    There is one, since TensorRT keeps the first that it is given.
    """
    if trt.__name__ not in _loggers:
        _loggers[trt.__name__] = _make_logger(trt)
    logger = _loggers[trt.__name__]
    logger.messages.clear()
    return logger


def _make_logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[tuple[Any, str]] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.WARNING:
                self.messages.append((severity, message))

        def said(self, worst: Any = trt.ILogger.ERROR) -> str:
            """The messages that are at least that bad."""
            return "\n".join(message for severity, message in self.messages if severity <= worst)

    return Logger()


def load_plugins(trt: Any, library: Path | None) -> dict[str, str]:
    """Registers our plugin library with a TensorRT: version by name of the plugins that it knows afterwards.

    None registers nothing. Raises BackendError where the library does not load.
    """
    registry = trt.get_plugin_registry()
    if library is not None and _loaded.get(trt.__name__) != library:
        if trt.__name__ == MODULES["tensorrt-rtx"]:
            _name_tensorrt_rtx(library.with_name(RTX_NAME_LIBRARY))
        before = len(registry.all_creators)
        registry.load_library(str(library))
        if len(registry.all_creators) == before:
            raise BackendError(
                explain(
                    str(library),
                    expected=f"a plugin library that {trt.__name__} {trt.__version__} loads",
                    found=_loading_error(library),
                    todo="Compile it on this machine (docs/tensorrt.md).",
                )
            )
        _loaded[trt.__name__] = library
    return {creator.name: creator.plugin_version for creator in registry.all_creators}


def _loading_error(library: Path) -> str:
    """Why the system does not load a library; TensorRT itself does not say."""
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return str(error)
    return "one that registers nothing"


def _name_tensorrt_rtx(library: Path) -> None:
    """Makes RTX_NAME known, without which TensorRT-RTX's parser ends the process when it meets a plugin."""
    for name in (RTX_NAME, str(library)):
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return
    raise BackendError(
        explain(
            f"Plugins in TensorRT-RTX need {RTX_NAME}",
            expected=str(library),
            found="none",
            todo="Compile it together with the plugin library (docs/tensorrt.md).",
        )
    )


def installed_library() -> Path:
    """Our plugin library. Raises BackendError, with the reason, where there is none."""
    library = tensorrt_library()
    if library is None:
        raise BackendError(
            explain("The TensorRT plugins", expected="a library", found="none", todo=missing_tensorrt_reason())
        )
    return library
