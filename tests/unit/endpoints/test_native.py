"""A provider's own paths: what rules and records are told of a request, whatever it looks like."""

import gzip
import json

import pytest

from tollhouse.core.call import ModelCall
from tollhouse.core.errors import Failure
from tollhouse.core.http import Headers, Request
from tollhouse.core.reply import Reply
from tollhouse.endpoints.native import NativeEndpoint
from tollhouse.wire.llm import CHAT
from tollhouse.wire.llm.native import NATIVE

pytestmark = pytest.mark.anyio

BODY = json.dumps({"model": "gpt-x", "messages": []}).encode()


async def told(path: str, body: bytes = BODY, method: bytes = b"POST") -> tuple[str, str]:
    """Operation and model of the call that the chain sees."""
    seen: list[ModelCall] = []

    async def handler(call: ModelCall) -> Reply:
        seen.append(call)
        return Reply(200, [], b"{}")

    endpoint = NativeEndpoint(b"/providers/one", "providers/one", handler, {CHAT.path: CHAT}, NATIVE)
    await endpoint.handle(Request(method, b"/providers/one" + path.encode(), Headers(), body))
    return seen[0].operation, seen[0].model


@pytest.mark.parametrize(
    "path", ["/chat/completions", "/chat%2Fcompletions", "/chat/completion%73", "/Chat/Completions"]
)
@pytest.mark.parametrize("more", ["", "/", "//", ";v=1", "%2F"])
async def test_a_known_api_is_known_however_its_path_is_written(path: str, more: str) -> None:
    assert await told(path + more) == ("chat", "providers/one/gpt-x")


async def test_other_paths_and_methods_are_not_read() -> None:
    assert await told("/files") == ("native", "providers/one")
    assert await told("/files", b"\x00\xff") == ("native", "providers/one")
    assert await told("/chat/completions", b"", b"GET") == ("native", "providers/one")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", BODY + b" and more", b"\xef\xbb\xbf" + BODY, BODY.decode().encode("utf-16"),
        gzip.compress(BODY, mtime=0),
        BODY.replace(b'"messages"', b'"Model":"cheap","messages"'),
        BODY.replace(b'"messages"', b'"stream":1,"messages"'),
        b'{"messages":[]}',
    ],
)  # fmt: skip
async def test_what_cannot_be_read_of_a_known_api_goes_nowhere(body: bytes) -> None:
    """A provider might find a model in it that a rule refuses."""
    with pytest.raises(Failure) as caught:
        await told("/chat/completions", body)
    assert caught.value.status == 400
