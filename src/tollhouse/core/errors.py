"""The one tree of failures. Foreign exceptions become one of these at the border where they arise, once.

A Failure knows what the caller may read (`status`, `code`, `message`, `headers`), what the operator reads
(`reason` for metrics and the header `x-tollhouse-reason`, `detail` for the log) and whether another attempt may
help (`retry`). How it looks on the wire is the business of the dialect that was asked.
"""

from enum import StrEnum
from typing import Final

__all__ = ["API_FAILED", "ConfigError", "Failure", "Problem", "Reason"]

API_FAILED: Final = "api_failed"
"""`Failure.code` where `detail` is what an HTTP API says of itself, for the model that has called it as a tool."""


class Reason(StrEnum):
    """Why an answer is what it is: the `reason` label of the metrics contract."""

    UPSTREAM = "Upstream"
    DIRECT_RESPONSE = "DirectResponse"
    NOT_FOUND = "NotFound"
    NO_HEALTHY_BACKEND = "NoHealthyBackend"
    RATE_LIMIT = "RateLimit"
    BUDGET = "Budget"
    TIMEOUT = "Timeout"
    JWT_AUTH = "JwtAuth"
    BASIC_AUTH = "BasicAuth"
    API_KEY_AUTH = "APIKeyAuth"
    EXT_AUTH = "ExtAuth"
    AUTHORIZATION = "Authorization"
    GUARDRAIL = "Guardrail"
    UPSTREAM_FAILURE = "UpstreamFailure"
    INTERNAL = "Internal"
    MCP = "MCP"
    EXT_PROC = "ExtProc"
    INVALID_REQUEST = "InvalidRequest"
    CLIENT_GONE = "ClientGone"
    OVERLOADED = "Overloaded"


class Failure(Exception):
    """A known failure on its way to the caller.

    status: HTTP status. reason: for metrics and logs. message: what is wrong and what would be right, safe to show
    to the caller. code: the machine-readable code of the dialect ("model_not_found"), or None. detail: for the log
    only. retry: another attempt (on another target) may help. retry_after: seconds. headers: lower-case names.
    sent: True once bytes of the request may have been acted upon, so that only idempotent work may be repeated.
    reached: False where it is known that nothing of the request left: no connection, no process, no place in a pool.
    url: where the caller's user can put it right, "" for nowhere; it goes into no log. scopes: that the upstream wants
    the token to have which the call went out with.
    """

    __slots__ = (
        "code", "detail", "headers", "message", "reached", "reason", "retry", "retry_after", "scopes", "sent",
        "status", "url",
    )  # fmt: skip

    def __init__(
        self,
        status: int,
        reason: Reason,
        message: str,
        *,
        code: str | None = None,
        detail: str = "",
        retry: bool = False,
        retry_after: float | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        sent: bool = False,
        reached: bool = True,
        url: str = "",
        scopes: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.code = code
        self.detail = detail
        self.retry = retry
        self.retry_after = retry_after
        self.headers = headers
        self.sent = sent
        self.reached = reached
        self.url = url
        self.scopes = scopes

    def copy(self) -> "Failure":
        """The same, for somebody else to raise: one that was raised refers to the frames it went through."""
        return Failure(
            self.status,
            self.reason,
            self.message,
            code=self.code,
            detail=self.detail,
            retry=self.retry,
            retry_after=self.retry_after,
            headers=self.headers,
            sent=self.sent,
            reached=self.reached,
            url=self.url,
            scopes=self.scopes,
        )


class Problem:
    """One thing that is wrong in a configuration: where (file, line and column from 1) and what would be right."""

    __slots__ = ("column", "file", "line", "message", "path")

    def __init__(self, message: str, *, file: str = "", line: int = 0, column: int = 0, path: str = "") -> None:
        self.message = message
        self.file = file
        self.line = line
        self.column = column
        self.path = path

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}: " if self.line else f"{self.file}: " if self.file else ""
        what = f"{self.path}: " if self.path else ""
        return f"{where}{what}{self.message}"


class ConfigError(Exception):
    """A configuration that cannot be used. Carries every problem found, none hidden."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems
