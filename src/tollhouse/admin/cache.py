"""What is kept of answers: purged.

Rule: it is in force here when the answer comes, and within a second on every node that shares the state.
"""

import msgspec

from tollhouse.admin.operation import Answer, Asked, Operation, Short, invalid, together
from tollhouse.gateway.premises import Premises
from tollhouse.policies.cache.purges import What, purge, purge_line

__all__ = ["CacheResource"]


class PurgeAsked(msgspec.Struct, forbid_unknown_fields=True):
    """by: what is purged: all, or what belongs to a model, an MCP server, a user, an org, a key or a tag; name: which.
    A user's, org's or key's is what was asked by it, whoever it may be given to."""

    by: What
    name: Short = ""


class Purged(msgspec.Struct):
    """number: of this purge; what was asked for before it is not given any more."""

    by: What
    name: str
    number: int


class CacheResource:
    def __init__(self, premises: Premises) -> None:
        self._config = premises.config
        self._state = premises.state

    def operations(self) -> list[Operation]:
        return [
            Operation(
                "cache.purge", "POST", "/api/cache/purge", "Give no kept answers any more: of a model, server, user, "
                "org, key or tag, or all", self.purge, Purged, PurgeAsked,
            ),
        ]  # fmt: skip

    async def purge(self, asked: Asked) -> Answer:
        body: PurgeAsked = asked.body
        config = self._config()
        together(config)
        try:
            line = purge_line(body.by, body.name)
        except ValueError as error:
            raise invalid(str(error)) from None
        number = await purge(self._state, line)
        return Answer(Purged(body.by, body.name, number), line)
