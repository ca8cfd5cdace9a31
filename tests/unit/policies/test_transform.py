"""Transforms: what is changed of a request, in which order, and what is refused when config is read."""

from typing import Any

import msgspec
import pytest
from pydantic import ValidationError
from tests.unit.policies.floor import layer, parts, request, tool, who

from tollhouse.core.call import Call, ModelCall
from tollhouse.core.errors import Failure
from tollhouse.core.reply import Reply
from tollhouse.policies import Scope
from tollhouse.policies.quotes import Changes
from tollhouse.policies.transform import TRANSFORM, TransformSpec, changes_of
from tollhouse.wire.llm import CHAT, EMBEDDINGS
from tollhouse.wire.llm.dialect import Dialect

pytestmark = pytest.mark.anyio


def steps(spec: Any) -> Any:
    return Scope.model_validate({"transform": spec}).transform


def asked(dialect: Dialect = CHAT, *headers: tuple[bytes, bytes], **fields: Any) -> ModelCall:
    body = msgspec.json.encode({"model": "m", **fields})
    made = request(b"POST", dialect.path, *headers, principal=who(id="ada", org="platform"))
    decoded = dialect.decode(body)
    return ModelCall(
        made, made.context, dialect=dialect, operation=dialect.operation, model="m", label="m", stream=False,
        fields=decoded.fields, body=body,
    )  # fmt: skip


async def sent(call: Call, *specs: Any) -> Any:
    """The fields that the backend gets. specs: of each scope, widest first."""
    levels = ("top", "model")
    handle = TRANSFORM.make(
        tuple(layer(steps(spec), levels[n], "m" * n) for n, spec in enumerate(specs)), parts(entrance="llm")
    )
    assert handle is not None
    seen: list[Call] = []

    async def last(it: Call) -> Reply:
        seen.append(it)
        return Reply(200, [], b"")

    await handle(call, last)
    [only] = seen
    assert only is call
    return {name: msgspec.json.decode(v) for name, v in call.fields.items()} if isinstance(call, ModelCall) else None


HI = [{"role": "user", "content": "hi"}]


async def test_fields_are_removed_set_and_filled_in() -> None:
    spec = {"remove": ["user"], "set": {"top_p": 1, "tools": []}, "defaults": {"temperature": 0.2, "seed": 7, "n": 2}}
    call = asked(user="x", top_p=0.5, seed=None, n=1, messages=HI)
    assert await sent(call, spec) == {
        "model": "m", "messages": HI, "top_p": 1, "tools": [], "temperature": 0.2, "seed": 7, "n": 1,
    }  # fmt: skip


async def test_what_was_worked_out_before_is_forgotten() -> None:
    call = asked(messages=HI, max_tokens=5)
    call.chat = object()
    before = call.estimate
    await sent(call, {"set": {"max_tokens": 500}})
    assert call.chat is None
    assert call.estimate == before + 495


async def test_a_field_in_another_case_is_no_way_around() -> None:
    assert await sent(asked(Temperature=2, USER="x"), {"set": {"temperature": 0}, "remove": ["user"]}) == {
        "model": "m", "temperature": 0,
    }  # fmt: skip


async def test_values_in_cel() -> None:
    spec = {"set": {"user": {"cel": "principal.user"}, "metadata": {"cel": "{'org': principal.org}"}}}
    assert await sent(asked(user="somebody else"), spec) == {
        "model": "m", "user": "ada", "metadata": {"org": "platform"},
    }  # fmt: skip


async def test_doubt_refuses() -> None:
    for spec in (
        {"set": {"user": {"cel": 'request.headers["x-user"]'}}},
        {"defaults": {"user": {"cel": 'request.headers["x-user"]'}}},
        {"when": 'request.headers["x-user"] == "a"', "remove": ["user"]},
        {"prompt": {"prefix": 'For {{ request.headers["x-user"] }}'}},
    ):
        with pytest.raises(Failure, match="cannot work out") as caught:
            await sent(asked(messages=HI), spec)
        assert (caught.value.status, caught.value.code) == (400, "transform_undecided")
        assert "top: transform 1" in caught.value.detail
        assert "x-user" not in caught.value.message
    # Nobody needs to know a default that is not used.
    spec = {"defaults": {"user": {"cel": 'request.headers["x-user"]'}}}
    assert await sent(asked(user="me"), spec) == {"model": "m", "user": "me"}


async def test_only_when() -> None:
    spec = [
        {"when": 'llm.operation == "chat"', "set": {"temperature": 0}},
        {"when": 'llm.operation == "embeddings"', "set": {"dimensions": 256}},
    ]
    assert await sent(asked(), spec) == {"model": "m", "temperature": 0}
    assert await sent(asked(EMBEDDINGS), spec) == {"model": "m", "dimensions": 256}


async def test_scopes_add_up() -> None:
    top = {
        "set": {"a": "top", "c": "top"},
        "defaults": {"d": "top", "e": "top"},
        "prompt": {"prefix": "T1", "suffix": "T2"},
    }
    model = {"set": {"a": "model"}, "defaults": {"d": "model"}, "prompt": {"prefix": "M1", "suffix": "M2"}}
    assert await sent(asked(messages=HI), top, model) == {
        "model": "m", "a": "model", "c": "top", "d": "model", "e": "top",
        "messages": [{"role": "system", "content": "T1\n\nM1\n\nM2\n\nT2"}, *HI],
    }  # fmt: skip


@pytest.mark.parametrize(
    "prompt, system",
    [
        ({"prefix": "P"}, "P\n\nMine."),
        ({"suffix": "{{principal.org}} / {{ principal.user }}"}, "Mine.\n\nplatform / ada"),
        ({"template": "You help {{ principal.user }}."}, "You help ada."),
        ({"template": "Rules.\n{{ system }}\nEnd."}, "Rules.\n\nMine.\n\nEnd."),
        ({"template": "{{system}}"}, "Mine."),
    ],
)
async def test_prompts(prompt: Any, system: str) -> None:
    messages = [{"role": "system", "content": "Mine."}, *HI]
    assert (await sent(asked(messages=messages), {"prompt": prompt}))["messages"] == [
        {"role": "system", "content": system}, *HI,
    ]  # fmt: skip


async def test_tools_are_not_transformed() -> None:
    await sent(tool(), {"set": {"a": 1}})
    assert TRANSFORM.make((layer(steps({"set": {"a": 1}})),), parts(entrance="mcp")) is None


@pytest.mark.parametrize(
    "spec, said",
    [
        ({}, "nothing is changed"),
        ([], "at least 1 item"),
        ({"set": {"model": "x"}}, "cannot be changed"),
        ({"remove": ["Stream"]}, "cannot be changed"),
        ({"set": {"": 1}}, "has a name"),
        ({"set": {"a": {"cel": "nobody.x"}}}, "unknown variable"),
        ({"set": {"a": {"cel": 7}}}, "as text"),
        ({"set": {"a": float("nan")}}, "NaN"),
        ({"when": "1 +", "set": {"a": 1}}, "not a CEL expression"),
        ({"set": {"a": 1}, "remove": ["a"]}, "both removed and set"),
        ({"defaults": {"a": 1}, "remove": ["a"]}, "use `set`"),
        ({"defaults": {"a": 1}, "set": {"a": 1}}, "always counts"),
        ({"prompt": {}}, "give a prefix"),
        ({"prompt": {"prefix": ""}}, "at least 1 character"),
        ({"prompt": {"prefix": "{{ system }}"}}, "is for `template`"),
        ({"prompt": {"template": "a", "suffix": "b"}}, "the whole text"),
        ({"prompt": {"template": "{{ system }} {{system}}"}}, "once"),
        ({"prompt": {"prefix": "{{ nobody }}"}}, "unknown variable"),
        ({"sets": {}}, "Extra inputs"),
    ],
)
def test_a_wrong_transform_is_an_error_when_config_is_read(spec: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        steps(spec)


def test_a_literal_object_is_no_cel() -> None:
    [only] = steps({"set": {"a": {"cel": "x", "and": "more"}}})
    assert only.set == {"a": {"cel": "x", "and": "more"}}


async def test_fields_below_the_top_level() -> None:
    spec = {
        "remove": ["/tools/*/function/strict", "/metadata/secret"],
        "set": {"/metadata/team": {"cel": "principal.org"}, "/stop/-": "END"},
        "defaults": {"/metadata/tier": "gold", "/reasoning/effort": "low"},
    }
    function = {"name": "f", "strict": True}
    call = asked(
        tools=[{"type": "function", "function": function}], metadata={"secret": 1, "Team": "x", "tier": "free"}, stop=[]
    )
    assert await sent(call, spec) == {
        "model": "m",
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "metadata": {"team": "platform", "tier": "free"},
        "stop": ["END"],
        "reasoning": {"effort": "low"},
    }


async def test_a_value_without_a_place_refuses() -> None:
    with pytest.raises(Failure, match=r"metadata: must be an object: the gateway sets a value in it") as caught:
        await sent(asked(metadata="mine"), {"set": {"/metadata/team": "a"}})
    assert (caught.value.status, caught.value.code) == (400, "invalid_value")
    assert caught.value.detail == "top: transform 1: /metadata/team"
    # A default gives way.
    assert (await sent(asked(metadata="mine"), {"defaults": {"/metadata/team": "a"}}))["metadata"] == "mine"


async def test_the_narrower_scope_counts_below_the_top_level_too() -> None:
    top = {"set": {"/a/b": 1, "/a/c": 1}, "defaults": {"/d/e": 1, "/d/f": 1}}
    model = {"set": {"/a/b": 2}, "defaults": {"/d/e": 2}}
    assert await sent(asked(), top, model) == {"model": "m", "a": {"b": 2, "c": 1}, "d": {"e": 2, "f": 1}}


@pytest.mark.parametrize(
    "spec, said",
    [
        ({"set": {"/model/x": 1}}, "cannot be changed"),
        ({"remove": ["/STREAM/x"]}, "cannot be changed"),
        ({"set": {"/user": 1}}, "write 'user'"),
        ({"set": {"//x": 1}}, "has a name"),
        ({"set": {"/a/~9": 1}}, "~0 is a tilde"),
        ({"remove": ["/a/-"]}, "use it in `set`"),
        ({"defaults": {"/a/-": 1}}, "use it in `set`"),
        ({"set": {"/a/b": 1}, "remove": ["/a/b"]}, "both removed and set"),
    ],
)
def test_a_wrong_pointer_is_an_error_when_config_is_read(spec: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        steps(spec)


@pytest.mark.parametrize("source", ["llm.tokens", "llm.model", "1"])
def test_a_condition_is_true_or_false(source: str) -> None:
    with pytest.raises(ValidationError, match="compare it with something"):
        TransformSpec.model_validate({"when": source, "remove": ["user"]})


@pytest.mark.parametrize(
    "steps, changes",
    [
        ([], Changes()),
        ([{"prompt": {"prefix": "a" * 4000, "suffix": "\u00e9"}}], Changes(4002 + 4, 0)),  # as JSON, with its quotes
        ([{"prompt": {"prefix": "for {{ principal.org }}."}}], Changes(6 + 3 + 1024, 0)),
        ([{"set": {"user": {"cel": "principal.user"}}}], Changes(4 + 1024, 0)),
        ([{"set": {"max_tokens": 90}}, {"set": {"max_completion_tokens": 80}}], Changes(12 + 23, 90)),
        ([{"set": {"max_tokens": 90}}, {"remove": ["MAX_TOKENS"]}], Changes(12, -1)),
        ([{"remove": ["/generationConfig/maxOutputTokens"]}], Changes(0, -1)),
        ([{"set": {"/inferenceConfig/maxTokens": {"cel": "5"}}}], Changes(26 + 1024, -1)),
        ([{"defaults": {"max_tokens": 90, "service_tier": "priority"}}], Changes(12 + 22, 0, ("priority",))),
        ([{"set": {"speed": "fast"}}], Changes(11, 0, ("fast",))),
        ([{"set": {"n": 4}}], Changes(2, -1)),  # each as long as the caller allows one to be
        ([{"defaults": {"best_of": 3}}, {"set": {"max_tokens": 90}}], Changes(20, -1)),
        ([{"set": {"/generationConfig/candidateCount": {"cel": "2"}}}], Changes(32 + 1024, -1)),
        ([{"set": {"n": 1}}, {"remove": ["best_of"]}], Changes(2, 0)),
    ],
)
def test_what_may_become_of_a_request(steps: list[dict[str, Any]], changes: Changes) -> None:
    assert changes_of([TransformSpec.model_validate(step) for step in steps]) == changes
