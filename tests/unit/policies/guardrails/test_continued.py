"""Conversations that the provider keeps: what was masked in an earlier call is turned back in a later answer."""

import base64
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.fixtures.valkey import Valkey, valkey
from tests.unit.policies.floor import Time, parts, who
from tests.unit.policies.guardrails.house import Server, asked, guarded, through

from tollhouse.core.call import ModelCall, Principal
from tollhouse.core.clock import Clock
from tollhouse.policies.base import Parts
from tollhouse.policies.guardrails.continued import Continued
from tollhouse.store.redis import RedisState
from tollhouse.store.spec import StateSpec
from tollhouse.wire.llm import CHAT, RESPONSES

pytestmark = pytest.mark.anyio

SPEC = {"request": [{"pii": ["email"], "action": "mask", "reversible": True}]}
ADA = "ada@example.org"
BOB = "bob@example.org"


class Provider(Server):
    """Keeps what it has been told: each answer says all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: dict[str, str] = {}
        self.number = 0
        self.form = "whole"

    async def handle(self, call: Any) -> Any:
        fields = {name: msgspec.json.decode(value) for name, value in call.fields.items()}
        before = self.heard.get(str(fields.get("previous_response_id")), "")
        conversation = fields.get("conversation")
        own = str(conversation["id"] if isinstance(conversation, dict) else conversation or "")
        said = f"{before or self.heard.get(own, '')}{fields['input']}; "
        self.number += 1
        answer = f"resp_{self.number}"
        self.heard[answer] = said
        if own:
            self.heard[own] = said
        self.stream = self.form != "whole"
        self.blocks = [whole(answer, said)] if self.form == "whole" else streamed(answer, said, int(self.form))
        return await super().handle(call)


def whole(answer: str, text: str) -> bytes:
    part = {"type": "output_text", "text": text, "annotations": []}
    item = {"id": "i", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    return msgspec.json.encode({"id": answer, "object": "response", "status": "completed", "output": [item]})


def streamed(answer: str, text: str, size: int) -> list[bytes]:
    def event(kind: str, **more: Any) -> bytes:
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode({"type": kind, **more}))

    at = {"item_id": "i", "output_index": 0, "content_index": 0}
    out = [event("response.created", response={"id": answer, "object": "response", "output": []})]
    out += [event("response.output_text.delta", **at, delta=text[n : n + size]) for n in range(0, len(text), size)]
    done = msgspec.json.decode(whole(answer, text))
    return [*out, event("response.output_text.done", **at, text=text), event("response.completed", response=done)]


def call(text: str, principal: Principal | None = None, **more: Any) -> ModelCall:
    return asked(RESPONSES, principal or who(id="ada", org="acme"), input=text, **more)


def text_of(body: bytes) -> str:
    """What the last of it says."""
    last = body if body[:1] == b"{" else body.rsplit(b"data: ", 1)[1]
    answer = msgspec.json.decode(last)
    text: str = answer.get("response", answer)["output"][0]["content"][0]["text"]
    return text


async def said(chain: Any, made: ModelCall) -> str:
    _, client = await through(chain, made)
    assert client.failure is None
    return text_of(client.body)


@pytest.mark.parametrize("form", ["whole", "1", "5", "400"])
async def test_a_conversation_goes_on(form: str) -> None:
    provider = Provider()
    provider.form = form
    chain = guarded(provider, SPEC, made=parts(entrance="llm"))
    stream = {"stream": True} if form != "whole" else {}
    assert await said(chain, call(f"I am {ADA}", **stream)) == f"I am {ADA}; "
    assert await said(chain, call("hello", previous_response_id="resp_1", **stream)) == f"I am {ADA}; hello; "
    third = await said(chain, call(f"and {BOB}", previous_response_id="resp_2", **stream))
    assert third == f"I am {ADA}; hello; and {BOB}; "
    fourth = await said(chain, call("bye", previous_response_id="resp_3", **stream))
    assert fourth == f"I am {ADA}; hello; and {BOB}; bye; "
    # A branch does not know what was said in another, nor does whoever goes on with nothing.
    assert "[EMAIL_" not in await said(chain, call("?", previous_response_id="resp_1", **stream))
    assert all("example.org" not in heard for heard in provider.heard.values())


@pytest.mark.parametrize("name", ["c_1", {"id": "c_1"}])
async def test_a_conversation_by_its_name(name: Any) -> None:
    provider = Provider()
    chain = guarded(provider, SPEC, made=parts(entrance="llm"))
    await said(chain, call(f"I am {ADA}", conversation=name, store=False))
    await said(chain, call(f"and {BOB}", conversation=name))
    assert await said(chain, call("bye", conversation=name)) == f"I am {ADA}; and {BOB}; bye; "


async def test_nobody_else_gets_it_back() -> None:
    provider = Provider()
    chain = guarded(provider, SPEC, made=parts(entrance="llm"))
    await said(chain, call(f"I am {ADA}"))
    for other in (who(id="bob", org="acme"), who(id="ada", org="other")):
        heard = await said(chain, call("?", other, previous_response_id="resp_1"))
        assert "[EMAIL_" in heard
        assert ADA not in heard
    nobody = call("?", previous_response_id="resp_1")
    nobody.principal = None
    assert ADA not in await said(chain, nobody)
    # A key whose name was another one's before.
    keys = [who("key", "ci", key="ci", user=user) for user in ("ada", "bob")]
    await said(chain, call(f"I am {ADA}", keys[0]))
    answer = f"resp_{provider.number}"
    assert ADA in await said(chain, call("?", keys[0], previous_response_id=answer))
    assert ADA not in await said(chain, call("?", keys[1], previous_response_id=answer))
    # Who does not say who he is may be anybody.
    for source in ("anonymous", "ext"):
        stranger = Principal(source, source=source)
        await said(chain, call(f"I am {ADA}", stranger))
        assert ADA not in await said(chain, call("?", stranger, previous_response_id=f"resp_{provider.number}"))
    forgotten = call(f"I am {BOB}", store=False)
    await said(chain, forgotten)
    assert BOB not in await said(chain, call("?", previous_response_id=f"resp_{provider.number}"))
    for odd in (7, None, "x" * 600, ["resp_1"], {"id": 1}):
        assert ADA not in await said(chain, call("?", previous_response_id=odd, conversation=odd))


async def test_other_apis_have_no_such_thing() -> None:
    made = parts(entrance="llm")
    server = Server(b'{"choices": [{"index": 0, "message": {"content": "[EMAIL_AAAA]"}}]}')
    _, client = await through(guarded(server, SPEC, made=made), asked(CHAT, messages=[], previous_response_id="resp_1"))
    assert b"[EMAIL_AAAA]" in client.body


async def test_what_is_remembered_is_bounded_and_forgotten() -> None:
    time = Time()
    memory = Continued(time.clock, None, [os.urandom(32)])
    ada = who(id="ada")
    for number in range(2000):
        assert memory.keep(ada, [f"r{number}"], {f"[EMAIL_{n:04d}]": "x" * 400 for n in range(100)}) is None
    assert memory._size <= 16 << 20
    assert memory._size == sum(len(name) + len(kept) + 200 for name, (kept, _) in memory._own.items())
    assert await memory.fetch(ada, ["r0"]) == {}
    assert len(await memory.fetch(ada, ["r1999"])) == 100
    memory.keep(ada, ["many"], {f"[EMAIL_{n:06d}]": "y" * 90 for n in range(5000)})
    found = await memory.fetch(ada, ["many"])
    assert 100 < len(found) < 1000
    assert "[EMAIL_004999]" in found  # the latest
    time.advance(3 * 86_400 + 1)
    assert await memory.fetch(ada, ["r1999", "many"]) == {}
    await memory.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with valkey(tmp_path_factory.mktemp("valkey")) as one:
        yield one


@pytest.fixture
async def nodes(server: Valkey) -> AsyncIterator[list[Parts]]:
    spec = StateSpec(url=server.url, encryption_key=base64.b64encode(b"k" * 32).decode(), timeout=5.0)
    made = [parts(entrance="llm", state=RedisState(spec, Clock())) for _ in range(2)]
    for one in made:
        assert one.state is not None
        await one.state.values.get("any")  # so that it is connected
    yield made
    for one in made:
        await one.shared.close()  # type: ignore[attr-defined]
        assert one.state is not None
        await one.state.close()


@pytest.mark.parametrize("form", ["whole", "7"])
async def test_another_node_goes_on(server: Valkey, nodes: list[Parts], form: str) -> None:
    provider = Provider()
    provider.form = form
    provider.number = 100 + len(form)
    chains = [guarded(provider, SPEC, made=one) for one in nodes]
    stream = {"stream": True} if form != "whole" else {}
    await said(chains[0], call(f"I am {ADA}", **stream))
    first = f"resp_{provider.number}"
    memory = nodes[0].shared(("guard continued",), lambda: None)
    for task in tuple(memory._tasks):
        await task
    assert await said(chains[1], call("hello", previous_response_id=first, **stream)) == f"I am {ADA}; hello; "
    with server.client() as plain:
        names = list(plain.scan_iter("*guards:masks:*"))
        assert names
        assert all(ADA.encode() not in plain.get(name) for name in names)


async def test_a_state_that_is_gone_fails_no_call(tmp_path: Path) -> None:
    with valkey(tmp_path) as own:
        spec = StateSpec(url=own.url, encryption_key=base64.b64encode(b"k" * 32).decode(), timeout=0.2)
        made = parts(entrance="llm", state=RedisState(spec, Clock()))
        provider = Provider()
        chain = guarded(provider, SPEC, made=made)
        await said(chain, call(f"I am {ADA}"))
        own.kill()
        assert await said(chain, call("hello", previous_response_id="resp_1")) == f"I am {ADA}; hello; "
        assert "resp_unknown" not in provider.heard
        await said(chain, call(f"and {BOB}", previous_response_id="resp_unknown"))
        assert BOB in await said(chain, call("?", previous_response_id=f"resp_{provider.number}"))
        await made.shared.close()  # type: ignore[attr-defined]
        assert made.state is not None
        await made.state.close()
