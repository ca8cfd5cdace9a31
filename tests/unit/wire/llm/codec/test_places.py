"""What is lost or wrong is said in the names of the caller's own API."""

from time import process_time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.core.errors import Failure
from tollhouse.wire.llm import CODECS
from tollhouse.wire.llm.codec.reading import MOST
from tollhouse.wire.llm.translate import Translation

PICTURE = "aGk="
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{"}}
CHAT = {
    "messages": [
        {"role": "system", "content": "s"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a"},
                {"type": "input_audio", "input_audio": {"data": PICTURE, "format": "wav"}},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "x"}, {"type": "odd"}], "reasoning_content": "hm"},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "https://a/b.png", "detail": "low", "x": 1}}],
        },
        {"role": "user", "name": "ann", "content": "b"},
    ],
    "response_format": {"type": "json_object"},
    "seed": 5,
    "metadata": {"a": "b"},
    "tools": [{"type": "function", "function": {"name": "f", "odd": 1}}, {"type": "custom", "custom": {"name": "g"}}],
}
TURNS = {
    "max_tokens": 9,
    "system": [{"type": "text", "text": "s"}, {"type": "odd"}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "search_result", "x": 1}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "r"}, {"type": "odd"}]}
            ],
        },
    ],
    "top_k": 4,
    "stop_sequences": ["x"],
    "output_config": {"format": {"type": "json_schema", "schema": {}, "odd": 1}, "odd": 2},
    "metadata": {"user_id": "u"},
    "tools": [{"name": "f", "input_schema": {}}, {"type": "web_search_20250305", "name": "web_search"}],
}
CONVERSE = {
    "system": [{"text": "s"}, {"guardContent": {"text": {"text": "g"}}}],
    "messages": [
        {
            "role": "user",
            "content": [{"text": "a"}, {"cachePoint": {"type": "default"}}, {"guardContent": {"text": {"text": "g"}}}],
        },
        {"role": "assistant", "content": [{"toolUse": {"toolUseId": "t", "name": "f", "input": {}}}]},
        {"role": "user", "content": [{"toolResult": {"toolUseId": "t", "content": [{"text": "r"}, {"odd": {}}]}}]},
    ],
    "inferenceConfig": {"stopSequences": ["x"], "odd": 1},
    "additionalModelRequestFields": {"top_k": 4},
    "toolConfig": {
        "tools": [
            {"toolSpec": {"name": "f", "inputSchema": {"json": {}}}},
            {"cachePoint": {"type": "default"}},
            {"systemTool": {"name": "nova_grounding"}},
        ]
    },
}
GENERATE = {
    "systemInstruction": {"parts": [{"text": "s"}, {"executableCode": {"code": "1"}}]},
    "contents": [
        {"role": "user", "parts": [{"text": "a"}, {"executableCode": {"code": "1"}}]},
        {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {}}}]},
        {
            "role": "user",
            "parts": [
                {
                    "functionResponse": {
                        "name": "f",
                        "response": {"output": "x"},
                        "parts": [{"executableCode": {"code": "1"}}],
                    }
                }
            ],
        },
    ],
    "generationConfig": {"topK": 4, "seed": 3, "odd": 1, "candidateCount": 2, "stopSequences": ["x"]},
    "tools": [{"functionDeclarations": [{"name": "f", "behavior": "BLOCKING"}]}, {"googleSearch": {}}],
}
RESPONSES = {
    "instructions": "s",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "odd"}]},
        {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "zz"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b"}, {"type": "odd"}]},
        {"type": "web_search_call", "id": "w"},
        {"type": "function_call", "call_id": "t", "name": "f", "arguments": "{}"},
        {
            "type": "function_call_output",
            "call_id": "t",
            "output": [{"type": "input_text", "text": "r"}, {"type": "odd"}],
        },
    ],
    "text": {"format": {"type": "json_object"}},
    "parallel_tool_calls": False,
    "tools": [{"type": "function", "name": "f"}, {"type": "web_search"}],
}


def lost(asker: str, asked: str, body: object, model: str = "m") -> list[str]:
    fields = msgspec.json.decode(msgspec.json.encode(body), type=dict[str, msgspec.Raw])
    chat = CODECS[asker].decode(fields, model="m", stream=False)
    translation = Translation(chat, CODECS[asker], CODECS[asked], 0)
    return translation.request(model=model, max_output=9000, lossy=True)[1]


@pytest.mark.parametrize(
    ("asker", "body", "asked", "places"),
    [
        (
            "chat",
            CHAT,
            "messages",
            [
                "messages[1].content[1]: sound",
                "messages[2].content[1]: odd",
                "messages[2].reasoning_content: a thought without a signature",
                "messages[3].content[0].image_url.detail",
                "messages[3].content[0].image_url.x",
                "messages[4].name",
                "response_format: JSON without a schema",
                "seed",
                "metadata",
                "tools[0].function.odd",
                "tools[1]: custom",
            ],
        ),
        (
            "messages",
            TURNS,
            "chat",
            [
                "system[1]: odd",
                "messages[0].content[1]: search_result",
                "messages[2].content[0].content[1]: a tool's result that is not text",
                "top_k",
                "output_config.format.odd",
                "output_config.odd",
                "tools[1]: web_search_20250305",
            ],
        ),
        ("messages", TURNS, "responses", ["stop_sequences"]),
        ("messages", TURNS, "generate", ["metadata.user_id"]),
        (
            "converse",
            CONVERSE,
            "responses",
            [
                "system[1]: guardContent",
                "messages[0].content[2]: guardContent",
                "messages[2].content[0].toolResult.content[1]: odd",
                "inferenceConfig.stopSequences",
                "inferenceConfig",
                "additionalModelRequestFields.top_k",
                "toolConfig.tools[2]: systemTool",
            ],
        ),
        (
            "generate",
            GENERATE,
            "messages",
            [
                "systemInstruction.parts[1]: executableCode",
                "contents[0].parts[1]: executableCode",
                "contents[2].parts[0].functionResponse.parts[0]: executableCode",
                "generationConfig.candidateCount",
                "generationConfig.seed",
                "generationConfig.odd",
                "tools.functionDeclarations[0].behavior",
                "tools: googleSearch",
            ],
        ),
        ("generate", GENERATE, "responses", ["generationConfig.topK", "generationConfig.stopSequences"]),
        (
            "responses",
            RESPONSES,
            "generate",
            [
                "input[0].content[1]: odd content",
                "input[1].encrypted_content",
                "input[2].content[1]: odd content",
                "input[3]: web_search_call",
                "input[5].output[1]: odd content",
                "parallel_tool_calls",
                "tools[1]: web_search",
            ],
        ),
        ("responses", RESPONSES, "messages", ["text.format: JSON without a schema"]),
    ],
)
def test_what_is_lost(asker: str, body: object, asked: str, places: list[str]) -> None:
    found = lost(asker, asked, body)
    assert [place for place in places if place not in found] == [], found
    assert [place for place in found if "parts[" in place and asker != "generate"] == []


@pytest.mark.parametrize("asked", ["messages", "converse", "generate"])
@pytest.mark.parametrize(
    ("asker", "body", "place"),
    [
        (
            "chat",
            {"messages": [{"role": "assistant", "content": "x", "reasoning_content": "hm", "tool_calls": [CALL]}]},
            "messages[0].tool_calls[0].function.arguments: ",
        ),
        (
            "responses",
            {
                "instructions": "s",
                "input": [
                    {"role": "user", "content": "a"},
                    {"type": "function_call", "call_id": "t", "name": "f", "arguments": "["},
                ],
            },
            "input[1].arguments: ",
        ),
    ],
)
def test_what_makes_no_sense(asker: str, body: object, place: str, asked: str) -> None:
    with pytest.raises(Failure) as caught:
        lost(asker, asked, body)
    assert caught.value.status == 400
    assert caught.value.message.startswith(place)


@pytest.mark.parametrize(
    ("chars", "kept"),
    [("user_0a_account__session_1-2", True), ("a b@c.d", True), ("{}", False), ("é", False), ("x" * 257, False)],
)
def test_a_user_is_request_metadata_of_bedrock(chars: str, kept: bool) -> None:
    body = {**TURNS, "metadata": {"user_id": chars}, "system": "s"}
    fields = msgspec.json.decode(msgspec.json.encode(body), type=dict[str, msgspec.Raw])
    chat = CODECS["messages"].decode(fields, model="m", stream=False)
    translation = Translation(chat, CODECS["messages"], CODECS["converse"], 0)
    told, places = translation.request(model="anthropic.claude-x", max_output=9, lossy=True)
    assert ("requestMetadata" in told) is kept
    assert any(place.startswith("metadata.user_id: ") for place in places) is not kept
    if kept:
        assert msgspec.json.decode(told["requestMetadata"]) == {"user": chars}


EMPTY: dict[str, list[object]] = {
    "chat": [
        {"messages": []},
        {"messages": [{"role": "system", "content": "s"}]},
        {"messages": [{"role": "user", "content": ""}]},
    ],
    "messages": [{"messages": []}, {"messages": [{"role": "user", "content": [{"type": "search_result"}]}]}],
    "converse": [{"messages": []}, {"messages": [{"role": "user", "content": [{"guardContent": {}}]}]}],
    "generate": [{"contents": []}, {"contents": [{"parts": [{"executableCode": {}}]}]}],
    "responses": [{"input": []}, {"instructions": "s", "input": [{"type": "web_search_call"}]}],
}


@pytest.mark.parametrize("asker", EMPTY)
@pytest.mark.parametrize("asked", ["messages", "generate", "converse"])
def test_a_request_of_which_nothing_is_left(asker: str, asked: str) -> None:
    if asker == asked:
        return
    field = {"generate": "contents", "responses": "input"}.get(asker, "messages")
    for body in EMPTY[asker]:
        with pytest.raises(Failure) as caught:
            lost(asker, asked, body)
        assert (caught.value.status, caught.value.code) == (400, "not_expressible")
        assert caught.value.message.startswith(f"{field}: nothing is left")


def many(asker: str, n: int) -> dict[str, object]:
    if asker == "responses":
        return {"input": [{"role": "user", "content": "a"}] * n}
    if asker == "generate":
        return {"contents": [{"parts": [{"text": "a"}]}] * (n // 2 + 1)}
    if asker == "converse":
        return {"messages": [{"role": "user", "content": [{"text": "a"}]}] * (n // 2 + 1)}
    return {"messages": [{"role": "user", "content": "a"}] * n}


@pytest.mark.parametrize("asker", EMPTY)
def test_too_many_entries(asker: str) -> None:
    fields = msgspec.json.decode(msgspec.json.encode(many(asker, MOST + 1)), type=dict[str, msgspec.Raw])
    with pytest.raises(Failure, match=r"has too many entries: .* 20,000") as caught:
        CODECS[asker].decode(fields, model="m", stream=False)
    assert caught.value.status == 400
    assert caught.value.message.startswith(("messages", "contents", "input"))
    fields = msgspec.json.decode(msgspec.json.encode(many(asker, MOST - 2)), type=dict[str, msgspec.Raw])
    assert len(CODECS[asker].decode(fields, model="m", stream=False).messages) >= MOST // 2 - 1


def test_entries_in_one_message_count_too() -> None:
    parts = [{"type": "text", "text": "a"}] * (MOST // 2)
    for asker in ("chat", "messages"):
        body = {"messages": [{"role": "user", "content": parts}] * 2}
        fields = msgspec.json.decode(msgspec.json.encode(body), type=dict[str, msgspec.Raw])
        with pytest.raises(Failure, match=r"^messages\[1\]\.content: has too many"):
            CODECS[asker].decode(fields, model="m", stream=False)


def test_thousands_of_losses_are_found_in_time() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}, "odd": 1}
    calls = [{**call, "id": f"c{n}"} for n in range(MOST - 2)]
    body = {"messages": [{"role": "assistant", "content": "x", "tool_calls": calls}, {"role": "user", "content": "y"}]}
    began = process_time()
    places = lost("chat", "messages", body)
    assert process_time() - began < 3.0  # as each place for itself takes a while
    assert len(places) == MOST - 2
    assert places[:2] == ["messages[0].tool_calls[0].odd", "messages[0].tool_calls[1].odd"]


@given(st.integers(0, 9), st.integers(0, 9), st.none() | st.integers(0, 9), st.sampled_from(list(EMPTY)))
def test_any_place_has_a_name(n: int, k: int, inner: int | None, asker: str) -> None:
    """Also where a message was put in since, as for a stream that is resumed."""
    codec = CODECS[asker]
    body = {"chat": CHAT, "messages": TURNS, "converse": CONVERSE, "generate": GENERATE, "responses": RESPONSES}[asker]
    fields = msgspec.json.decode(msgspec.json.encode(body), type=dict[str, msgspec.Raw])
    chat = codec.decode(fields, model="m", stream=False)
    for messages in (chat.messages, [*chat.messages]):
        chat.messages = messages
        if n < len(messages) and k < len(messages[n].parts):
            place = f"messages[{n}].parts[{k}]" + ("" if inner is None else f".parts[{inner}]")
            assert codec.place(chat, place)
            assert codec.place(chat, f"messages[{n}]")
    assert codec.place(chat, "temperature").endswith("temperature")
