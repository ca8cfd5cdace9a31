"""What a resource of the admin API is made of: operations, and what they are asked and answer.

Rule: an operation says once what it takes and gives; the request is checked, and the OpenAPI document written, by that.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec

from tollhouse.config.spec import Config
from tollhouse.core.errors import ConfigError, Failure, Reason

__all__ = [
    "Answer", "Asked", "Long", "Moment", "Operation", "Short", "cursor", "invalid", "missing", "moment", "paged",
    "refused", "started", "together", "unconfigured",
]  # fmt: skip

T = TypeVar("T")
Place = TypeVar("Place", bound=tuple[Any, ...])
"""Of something in a list, by which that is in order."""

Short = Annotated[str, msgspec.Meta(max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""Text that may stand in header fields and logs."""

Long = Annotated[str, msgspec.Meta(max_length=1024, pattern=r"^[^\x00-\x1f\x7f]*$")]

Moment = Annotated[datetime, msgspec.Meta(tz=True)]
"""As RFC 3339 has it, with its offset."""


class Asked(NamedTuple):
    """operator: who asks. id: in the path, "" where it has none. body: of the type that the operation takes. limit,
    cursor: of lists. query: the names and values that the operation knows, as they came."""

    operator: str
    id: str = ""
    body: Any = None
    limit: int = 100
    cursor: str = ""
    query: tuple[tuple[str, str], ...] = ()


class Answer(NamedTuple):
    """value: what is answered, of the type that the operation gives. said: what was done, for the log."""

    value: Any
    said: str = ""


class Operation(NamedTuple):
    """name: in the log, and in the OpenAPI document. path: with `{id}` where it has one. answer: raises Failure. takes:
    type of the JSON body, None for none. optional: it may be absent. listed: it has pages. status: of the answer.
    query: names that it knows there, with what they say; those that end in `[]` may be given again."""

    name: str
    method: Literal["GET", "POST", "DELETE"]
    path: str
    summary: str
    answer: Callable[[Asked], Awaitable[Answer]]
    gives: Any
    takes: Any = None
    optional: bool = False
    listed: bool = False
    status: int = 200
    query: tuple[tuple[str, str], ...] = ()


def cursor(*place: Any) -> str:
    """Where a page ends, for who asks for the next one."""
    return urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def started(asked: Asked, kind: Any, before: Place) -> Place:
    """The place behind which the page begins: the one that the cursor says, whose type is `kind`; without a cursor
    `before`, which is before all. Raises Failure 400."""
    text = asked.cursor
    if not text:
        return before
    try:
        place: Place = msgspec.json.decode(urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=kind)
    except (ValueError, msgspec.DecodeError):
        raise invalid("`cursor` is none that this list has given") from None
    return place


def paged(asked: Asked, found: Sequence[T], place: Callable[[T], tuple[Any, ...]]) -> tuple[Sequence[T], str | None]:
    """A page of what was found behind its beginning, and the cursor of the next one, None on the last. found: one more
    than the page may have is enough."""
    shown = found[: asked.limit]
    return shown, cursor(*place(shown[-1])) if len(found) > len(shown) else None


def moment(seconds: float) -> datetime:
    """Of unix seconds."""
    return datetime.fromtimestamp(seconds, UTC)


def invalid(message: str) -> Failure:
    return Failure(400, Reason.INVALID_REQUEST, message, code="invalid_request")


def missing(message: str) -> Failure:
    return Failure(404, Reason.NOT_FOUND, message, code="not_found")


def refused(message: str) -> Failure:
    """It cannot be done as the gateway is configured, or as things are."""
    return Failure(409, Reason.INVALID_REQUEST, message, code="conflict")


def together(config: Config) -> None:
    """What is said to one worker is in force in all. Raises Failure 409 where they share nothing."""
    if config.state.is_memory and config.server.workers > 1:
        raise refused("several workers share no memory: name a server in `state`, or set `server.workers` to 1")


def unconfigured(error: ConfigError) -> Failure:
    """The same, in the words of the configuration's problems."""
    return refused("; ".join(problem.message for problem in error.problems))
