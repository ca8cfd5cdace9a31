"""What the configuration of every kind of MCP server has in common.

Rule: nothing here depends on how the server is reached.
"""

from typing import Literal

from pydantic import Field

from tollhouse.core.spec import Duration, Spec

__all__ = ["McpServerSpec"]


class McpServerSpec(Spec):
    """What is common to all kinds of servers."""

    timeout: Duration = Field(default=300.0, description="for one call, to its end")
    list_timeout: Duration = Field(default=5.0, description="how long a list waits for this server")
    list_ttl: Duration | None = Field(
        default=None,
        description="how long a list is kept; not set: as the server says, else a minute if it tells of changes, "
        "and 5 seconds if not",
    )
    idle_timeout: Duration = Field(default=3600.0, description="a session that nobody uses for so long is closed")
    session: Literal["auto", "exclusive", "principal", "shared"] = Field(
        default="auto",
        description="who shares a session with a server of the old era: nobody (each agent's session has its own), the "
        "agents of one caller, or all that cannot be asked anything; auto: exclusive over HTTP, principal on stdio, "
        "shared where the server gives no session id",
    )
    catalogue: Literal["shared", "session"] = Field(
        default="shared", description="session: what the server lists depends on the session, so nobody shares it"
    )
    after_loss: Literal["continue", "report"] = Field(
        default="continue",
        description="report: when the server has lost a session in which calls had run, the next call says so instead "
        "of being carried out",
    )
    trust_annotations: bool | None = Field(
        default=None,
        description="believe readOnlyHint and idempotentHint: such calls are made again when their outcome is unknown; "
        "not set: of servers that the gateway starts or reaches at a private address",
    )

    def trusted(self) -> bool:
        """Whether the server's word on its tools counts."""
        return self.trust_annotations is not False
