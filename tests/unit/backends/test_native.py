"""A provider's own paths: where they lead for each kind, and what of a request stays here."""

from time import monotonic

import msgspec
import pytest
from tests.unit.backends.calls import DONE, EVENT, always, answer, call, stream, taken, world
from tests.unit.backends.tokens import Time
from tests.unit.net.upstreams import Peer, upstream

from tollhouse.backends.native import NativeBackend
from tollhouse.backends.renewal import Lease
from tollhouse.backends.token import bearer
from tollhouse.core.call import ModelCall
from tollhouse.core.errors import Failure
from tollhouse.core.http import Headers, Request
from tollhouse.wire.llm import CHAT
from tollhouse.wire.llm.native import NATIVE

pytestmark = pytest.mark.anyio

PREFIX = b"/providers/up"


def native(method: bytes, target: bytes, *headers: tuple[bytes, bytes], body: bytes = b"") -> ModelCall:
    made = Request(method, PREFIX + target, Headers(headers), body)
    return ModelCall(
        made, made.context, dialect=NATIVE, operation="native", model="providers/up", label="providers/up",
        stream=False, fields={}, body=body,
    )  # fmt: skip


@pytest.mark.parametrize(
    "kind, path, more, target, proof",
    [
        ("openai", "/v1", {}, b"/v1/files", b"authorization: Bearer k"),
        ("anthropic", "/a", {}, b"/a/files", b"x-api-key: k"),
        ("azure", "", {}, b"/openai/v1/files", b"api-key: k"),
        ("azure", "", {"api_version": "2024-10-21"}, b"/openai/files", b"api-key: k"),
        ("gemini", "/g", {}, b"/g/files", b"x-goog-api-key: k"),
    ],
)
async def test_where_it_leads(kind: str, path: str, more: dict[str, str], target: bytes, proof: bytes) -> None:
    seen: list[tuple[bytes, bytes]] = []
    async with upstream(always(answer(b"{}"), seen)) as up, world() as it:
        made = it.provider("up", kind=kind, base_url=up.url(path), api_key="k", **more)
        for credential in (b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key"):
            asked = native(
                b"GET",
                b"/files?key=mine&a=b&%6bey=x",
                (credential, b"callers"),
                (b"connection", b"x-hop"),
                (b"x-hop", b"1"),
            )
            reply = await NativeBackend(made, PREFIX).handle(asked)
            assert (reply.status, reply.first) == (200, b"{}")
    for head, _ in seen:
        assert head.startswith(b"GET " + target + b"?a=b HTTP/1.1\r\n")
        assert proof + b"\r\n" in head
        assert b"callers" not in head
        assert b"x-hop" not in head


async def test_another_key_is_tried_once_and_the_refusal_stays_here() -> None:
    seen: list[tuple[bytes, bytes]] = []
    async with upstream(always(answer(b'{"error":"bad key k-1"}', 401), seen)) as up, world() as it:
        made = it.openai(up.url("/v1"), api_keys=["k-1", "k-2"])
        with pytest.raises(Failure, match="own credentials") as caught:
            await NativeBackend(made, PREFIX).handle(native(b"POST", b"/files", body=b"{}"))
    assert (caught.value.status, caught.value.code) == (502, "upstream_credentials")
    assert [head.count(b"Bearer k-2") for head, _ in seen][:2] == [0, 1]


async def test_a_token_that_is_refused_is_sent_once_and_the_next_one_waited_for() -> None:
    tokens = iter(("stale", "fresh"))

    async def fetch() -> Lease[str]:
        return Lease(next(tokens))

    async def play(peer: Peer) -> None:
        while True:
            seen.append((await peer.request())[0])
            await peer.send(answer(b"{}", 401 if b"stale" in seen[-1] else 200))

    seen: list[bytes] = []
    time = Time()
    async with upstream(play) as up, world() as it:
        made = it.openai(up.url("/v1"))
        token = made.faces[CHAT.operation].credential = bearer(fetch, "up", time.clock)
        await token.ready(monotonic() + 5)
        await time.pass_(60.0)  # one that has just come is not doubted
        reply = await NativeBackend(made, PREFIX).handle(native(b"GET", b"/files"))
    assert reply.status == 200
    assert [b"Bearer fresh" in head for head in seen] == [False, True]


async def test_a_stream_of_a_known_api_is_read_and_a_cut_one_told() -> None:
    async with upstream(always(stream(EVENT))) as up, world() as it:
        made = it.openai(up.url("/v1"))
        asked = call({"stream": True}, dialect=CHAT)
        asked.request.target = asked.request.path = PREFIX + b"/chat/completions"
        said, failure = await taken(await NativeBackend(made, PREFIX).handle(asked))
        assert said == EVENT
        assert failure is not None
        assert asked.context.usage is not None
        assert asked.context.usage.estimated
    async with upstream(always(stream(EVENT, DONE))) as up, world() as it:
        made = it.openai(up.url("/v1"))
        unread = native(b"POST", b"/chat/completions", body=msgspec.json.encode({"stream": True}))
        said, failure = await taken(await NativeBackend(made, PREFIX).handle(unread))
        assert (said, failure) == (EVENT + DONE, None)
        assert unread.context.usage is None


async def test_a_query_that_would_break_the_request_is_refused() -> None:
    async with world() as it:
        made = it.openai("http://127.0.0.1:9/v1")
        with pytest.raises(Failure, match="percent-encoded"):
            await NativeBackend(made, PREFIX).handle(native(b"GET", b"/files?a=\xff"))
