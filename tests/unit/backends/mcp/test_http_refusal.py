"""What an answer over HTTP means that is no 200."""

from typing import Any

import pytest
from tests.fixtures.mcp_gateway import gateway
from tests.fixtures.mcp_raw import Asked, Changing, Old, answer, result, upstream

from tollhouse.backends.mcp.http import HttpServerSpec
from tollhouse.core.errors import Failure

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(("forgotten", "calls"), [(True, 2), (False, 1)])
async def test_a_400_is_an_expiry_only_if_a_ping_fails_too(forgotten: bool, calls: int) -> None:
    no = {"jsonrpc": "2.0", "id": None, "error": {"code": -32000, "message": "Bad Request: no valid session"}}

    def call(asked: Asked) -> Any:
        return answer(400, no) if asked.headers["mcp-session-id"] == "s-1" else result(asked, {"content": []})

    def ping(asked: Asked) -> Any:
        return answer(400, no) if forgotten else result(asked, {})

    script = Old(tools_call=call, ping=ping)
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        answered = (await (await running.agent()).call("echo")).message
        assert len(server.calls("tools/call")) == calls
        assert ("result" in answered) == forgotten


@pytest.mark.parametrize(
    ("status", "ours", "code", "retry", "sent", "after"),
    [
        (401, 502, "upstream_credentials", False, False, None),
        (403, 502, "upstream_credentials", False, True, None),
        (429, 429, "rate_limit_exceeded", True, False, 7.0),
        (503, 503, None, True, True, 7.0),
        (502, 502, None, True, True, None),
    ],
)
async def test_a_refusal_says_what_is_known(
    status: int, ours: int, code: str | None, retry: bool, sent: bool, after: float | None
) -> None:
    """That it was reached, above all: what answered is not asked again as if nothing had been sent."""
    failures: list[Failure] = []

    async def seen(call: Any, next: Any) -> Any:
        try:
            return await next(call)
        except Failure as failure:
            failures.append(failure)
            raise

    script = Old(tools_call=lambda asked: answer(status, b"busy", retry_after="7"))
    async with (
        upstream(script) as server,
        gateway({"u": HttpServerSpec(url=server.url)}, policies=(seen,)) as running,
    ):
        answered = await (await running.agent()).call("echo")
        assert answered.error == (200, -32603)
        [failure] = failures
        assert (failure.status, failure.code, failure.retry, failure.sent, failure.retry_after) == (
            ours, code, retry, sent, after,
        )  # fmt: skip
        assert failure.reached
        assert "busy" not in answered.body.decode()


@pytest.mark.parametrize(
    ("status", "challenge", "scopes"),
    [
        (403, 'Bearer error="insufficient_scope", scope="write read"', ("read", "write")),
        (403, 'Bearer error="insufficient_scope"', ()),
        (403, 'Bearer error="insufficient_scope", scope="a\\"b"', ()),
        (403, 'Bearer scope="write"', ()),
        (401, 'Bearer error="insufficient_scope", scope="write"', ()),
    ],
)
async def test_a_server_may_say_which_scopes_are_lacking(status: int, challenge: str, scopes: tuple[str, ...]) -> None:
    failures: list[Failure] = []

    async def seen(call: Any, next: Any) -> Any:
        try:
            return await next(call)
        except Failure as failure:
            failures.append(failure)
            raise

    script = Old(tools_call=lambda asked: answer(status, b"", www_authenticate=challenge))
    async with (
        upstream(script) as server,
        gateway({"u": HttpServerSpec(url=server.url)}, policies=(seen,)) as running,
    ):
        await (await running.agent()).call("echo")
    assert [failure.scopes for failure in failures] == [scopes]


async def test_an_ordinary_refusal_is_no_other_era() -> None:
    """400 to a call, from a server that still is what it was."""

    def call(asked: Asked) -> Any:
        return answer(400, {"jsonrpc": "2.0", "id": asked.id, "error": {"code": -32602, "message": "bad arguments"}})

    class New(Changing):
        def __call__(self, asked: Asked) -> Any:
            return call(asked) if asked.method == "tools/call" else super().__call__(asked)

    async with upstream(New("new")) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        answered = await running.stateless().call("echo")
        assert answered.message["error"]["code"] == -32602
        assert len(server.calls("tools/call")) == 1
        assert running.servers.all[0].new is True
