"""Applications are told that a login has ended (OpenID Connect Back-Channel Logout 1.0 section 2.5).

Rule: it is told to those of the configuration that got a code in that login, where they have said they want to hear of
it, and after the tokens are refused here: nobody who logs out waits for an application. What cannot be told in half a
minute is not told; so many are told at a time, and the log says whom it was not told.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import urlencode

from tollhouse.core.errors import Failure
from tollhouse.issuer.clients import Clients
from tollhouse.issuer.mint import Mint
from tollhouse.issuer.records import Session
from tollhouse.net.client import Client as Fetcher
from tollhouse.wire.oidc import BACKCHANNEL_LOGOUT, LOGOUT_TOKEN

__all__ = ["BackchannelLogout"]

log = logging.getLogger("tollhouse.issuer")

_LIFE: Final = 120.0
_TIMEOUT: Final = 5.0
_AGAIN: Final = (1.0, 5.0, 15.0)
_MOST: Final = 256
_LARGEST: Final = 1 << 16
_HEADERS: Final = ((b"content-type", b"application/x-www-form-urlencoded"), (b"accept", b"*/*"))


class BackchannelLogout:
    """sleep: waits so many seconds."""

    __slots__ = ("_clients", "_fetcher", "_mint", "_sleep", "_tasks")

    def __init__(
        self,
        mint: Mint,
        clients: Clients,
        fetcher: Fetcher,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
    ) -> None:
        self._mint = mint
        self._clients = clients
        self._fetcher = fetcher
        self._sleep = sleep
        self._tasks: set[asyncio.Task[None]] = set()

    def wants(self, client_id: str) -> bool:
        """Whether that client is to be told."""
        client = self._clients.configured(client_id)
        return client is not None and bool(client.backchannel_logout_uri)

    def ended(self, session: Session) -> None:
        """Tell those who have to know, from now on."""
        for client_id in session.clients:
            client = self._clients.configured(client_id)
            if client is None or not client.backchannel_logout_uri:
                continue
            if len(self._tasks) >= _MOST:
                log.warning("client %s is not told of a logout: %d others are being told", client_id, _MOST)
                continue
            telling = self._tell(client_id, client.backchannel_logout_uri, session.sub, session.sid)
            task = asyncio.get_running_loop().create_task(telling)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            log.warning("%d clients are not told of logouts: this configuration ends", len(tasks))
            await asyncio.wait(tasks)

    async def _tell(self, client_id: str, uri: str, sub: str, sid: str) -> None:
        try:
            for wait in (*_AGAIN, None):
                why, is_final = await self._told(client_id, uri, sub, sid)
                if not why:
                    return
                if wait is None or is_final:
                    log.warning("client %s could not be told of a logout: %s", client_id, why)
                    return
                await self._sleep(wait)
        except Exception:  # the root of the telling task: nobody waits for it
            log.exception("telling client %s of a logout failed", client_id)

    async def _told(self, client_id: str, uri: str, sub: str, sid: str) -> tuple[str, bool]:
        """Why not, "" where it was told; and whether it is of no use to try again."""
        try:
            claims = {"aud": client_id, "sub": sub, "sid": sid, "events": {BACKCHANNEL_LOGOUT: {}}}
            token = self._mint.signed(LOGOUT_TOKEN, claims, _LIFE).token.decode("ascii")
            fetched = await self._fetcher.fetch(
                uri,
                method="POST",
                headers=_HEADERS,
                body=urlencode({"logout_token": token}).encode("ascii"),
                timeout=_TIMEOUT,
                limit=_LARGEST,
                guarded=False,  # the operator has written it
                redirects=0,
            )
        except Failure as failure:
            return failure.detail or failure.message, False
        if fetched.status in (200, 204):
            return "", True
        return f"it answered {fetched.status}", 400 <= fetched.status < 500 and fetched.status not in (408, 429)
