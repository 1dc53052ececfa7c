"""The errors that Edge SDK raises on purpose; each says what, expected, found and what to do."""

from __future__ import annotations


class EdgeError(Exception):
    """Base of every error that is about the user's input rather than about a bug."""

    exit_code = 1


class ConfigError(EdgeError, ValueError):
    """A model configuration contradicts itself or asks for something unsupported."""


class BundleError(EdgeError):
    """A bundle is incomplete, altered, or of a format this version cannot read."""


class PromptError(EdgeError, ValueError):
    """A prompt cannot be run: empty, not text, or longer than the context."""


class BusyError(EdgeError):
    """Too many want answers at the same time."""


class MemoryLimitError(EdgeError, MemoryError):
    """There is no memory for more states. What was asked for was not begun; sessions are as they were."""


class StateError(EdgeError):
    """A saved state is damaged, or belongs to another model."""


class RecordingError(EdgeError):
    """A recording is damaged, belongs to another policy, or cannot be made."""


class WatchdogError(EdgeError):
    """The watchdog stopped the robot, or cannot watch."""


class CheckpointError(EdgeError):
    """A checkpoint is missing tensors, has misshapen ones, or is of an unknown family."""


class LinkError(EdgeError):
    """There is no working line to a robot."""


class DeployError(EdgeError):
    """A board cannot be reached, or refuses what it is sent; what it runs is as it was."""


class BackendError(EdgeError):
    """No engine can run the bundle on this machine, or the engine refused it."""


class CameraError(EdgeError):
    """A camera, stream or video file cannot be opened or gives no frames."""


class ImageError(PromptError):
    """An image cannot be decoded, is too large, or is given to a model that sees none."""


def explain(what: str, *, expected: object, found: object, todo: str) -> str:
    """One message in the house form: what was wrong, expected, found, what to do."""
    return f"{what}: expected {expected}, found {found}. {todo}"
