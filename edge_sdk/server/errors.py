"""Errors as OpenAI's clients know them."""

from __future__ import annotations

from typing import Any

from edge_sdk.errors import BusyError, ConfigError, EdgeError, MemoryLimitError, PromptError

TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
RETRY_AFTER_S = 1


class RequestError(EdgeError):
    """A request is refused with an HTTP status."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    def body(self) -> dict[str, Any]:
        """OpenAI's form of an error."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """What goes with it."""
        return {
            401: {"www-authenticate": "Bearer"},
            429: {"retry-after": str(RETRY_AFTER_S)},
            503: {"retry-after": str(RETRY_AFTER_S)},
        }.get(self.status, {})


def as_request_error(error: EdgeError) -> RequestError:
    """An error of the runtime, as the client sees it."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, BusyError):
        return RequestError(429, str(error), code="busy")
    if isinstance(error, MemoryLimitError):
        return RequestError(503, str(error), code="out_of_memory")
    if isinstance(error, (PromptError, ConfigError)):
        return RequestError(400, str(error))
    return RequestError(500, str(error), code="engine_failed")
