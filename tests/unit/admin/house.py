"""An admin API over real parts of a gateway: its ledger's file, its state, its keys."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tollhouse.admin import api
from tollhouse.config.parse import parse
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.core.http import Headers, Request
from tollhouse.gateway.account_list import AccountList
from tollhouse.gateway.premises import Premises
from tollhouse.gateway.reconciliation import Reconciled
from tollhouse.issuer.keys import SigningKeys
from tollhouse.issuer.spec import KeysSpec
from tollhouse.policies.audit import Audit
from tollhouse.store.base import State
from tollhouse.store.memory import MemoryState
from tollhouse.store.revocation import Revocations

KEY = "an-operators-key-of-32-characters"
ADMIN = f"{{address: '127.0.0.1:15000', keys: [{{name: eve, key: {KEY}}}], hosts: [ops.example.com]}}"


class House:
    """Answers as the admin listener of this configuration would. where: of its ledger."""

    def __init__(
        self,
        where: Path,
        more: str = "",
        *,
        state: State | None = None,
        keys: SigningKeys | None = None,
        audit: Audit | None = None,
        admin: str = ADMIN,
        ledger: str | None = None,
        check_budgets: Callable[[], Awaitable[Reconciled]] | None = None,
    ) -> None:
        file = f"ledger: sqlite:{where}/keys.db\n" if ledger is None else ledger
        text = f"server: {{admin: {admin}}}\n{file}authenticate: {{issued: true}}\n{more}"
        self.config = parse(text, str(where / "t.yaml"), {}).config
        self.clock = Clock()
        self.state = MemoryState(self.clock) if state is None else state
        self.revocations = Revocations(self.state, self.clock)
        spec = self.config.server.admin
        assert spec is not None
        premises = Premises(
            spec,
            spec.address,
            lambda: self.config,
            self.state,
            self.revocations,
            lambda: keys,
            lambda: audit,
            lambda: self.accounts,
            check_budgets,
        )
        self.handle = api(premises)
        self.requests: list[Request] = []
        self.accounts: AccountList | None = None

    async def ask(
        self, method: str, target: str, body: Any = None, key: str = KEY, **fields: str
    ) -> tuple[int, Any, dict[str, str]]:
        """(status, JSON, headers). body: bytes, or what becomes JSON. fields: of the head, `_` for `-`; "" for none."""
        raw = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"host": "127.0.0.1:15000", "authorization": f"Bearer {key}", **fields}
        if body is not None:
            given.setdefault("content_type", "application/json")
        headers = [(n.replace("_", "-").encode(), v.encode("latin-1")) for n, v in given.items() if v]
        request = Request(method.encode(), target.encode(), Headers(headers), raw)
        self.requests.append(request)
        try:
            answer = await self.handle(request)
        except Failure as failure:
            answer = request.render(failure, request)
        told = {name.decode(): value.decode() for name, value in answer.headers}
        return answer.status, json.loads(answer.body), told


@asynccontextmanager
async def signing(where: Path) -> AsyncIterator[House]:
    """A House with an auth provider's keys."""
    clock = Clock()
    state = MemoryState(clock)
    revocations = Revocations(state, clock)
    keys = SigningKeys(state.values, KeysSpec(), revocations=revocations)
    await keys.load()
    try:
        yield House(where, state=state, keys=keys)
    finally:
        await keys.close()
