"""Accounts that users have connected at servers: which there are, and their end.

Rule: nothing here shows a token. One that is ended is given back where its service can be told (RFC 7009), and no call
goes out with it any more within a second, on any gateway that shares the state.
"""

import msgspec

from tollhouse.admin.operation import Answer, Asked, Moment, Operation, missing, moment, paged, refused, started
from tollhouse.gateway.account_list import AccountList, Listed
from tollhouse.gateway.premises import Premises

__all__ = ["AccountsResource"]


class ConnectedAccount(msgspec.Struct):
    """server: the MCP server; user: whose it is, as tokens name him; host: who vouches for it there; scopes: that were
    granted, as far as that was said; since: when it was connected; agent: that had asked for it."""

    id: str
    server: str
    user: str
    host: str
    scopes: list[str]
    since: Moment
    agent: str


class AccountPage(msgspec.Struct):
    """accounts: by server and user. next: cursor of the next page, null on the last one."""

    accounts: list[ConnectedAccount]
    next: str | None


class AccountsResource:
    def __init__(self, premises: Premises) -> None:
        self._accounts = premises.accounts

    def operations(self) -> list[Operation]:
        path = "/api/accounts"
        return [
            Operation(
                "accounts.list", "GET", path, "Accounts that users have connected at servers", self.page, AccountPage,
                listed=True,
            ),
            Operation(
                "accounts.disconnect", "DELETE", f"{path}/{{id}}", "End an account's connection, and give its tokens "
                "back", self.disconnect, ConnectedAccount,
            ),
        ]  # fmt: skip

    async def page(self, asked: Asked) -> Answer:
        found = await self._there().page(started(asked, tuple[str, str], ("", "")), asked.limit + 1)
        shown, more = paged(asked, found, lambda one: (one.server, one.user))
        return Answer(AccountPage([_shown(one) for one in shown], more))

    async def disconnect(self, asked: Asked) -> Answer:
        accounts = self._there()
        found = await accounts.find(asked.id)
        if found is None or not await accounts.disconnect(found):
            raise missing("there is no account of this id; GET /api/accounts has those there are")
        return Answer(_shown(found), f"{asked.id}, of user {found.user!r} at {found.server!r}")

    def _there(self) -> AccountList:
        accounts = self._accounts()
        if accounts is None:
            raise refused("no server of this configuration has `oauth`, so there are no accounts")
        return accounts


def _shown(one: Listed) -> ConnectedAccount:
    return ConnectedAccount(one.id, one.server, one.user, one.host, list(one.scopes), moment(one.since), one.agent)
