"""wire.guard.llm: every text of a request and of a whole answer, in each API, of its kind; and changed there alone."""

import json
from typing import Any

import msgspec
import pytest

from tollhouse.wire.guard.llm import answer_texts, request_texts

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
IMAGE = "data:image/png;base64,AAAA"

Kinds = dict[str, list[str]]

REQUESTS: list[tuple[str, Any, Kinds, dict[str, int]]] = [
    (
        "chat",
        {
            "model": "m",
            "temperature": 0.5,
            "user": "u1",
            "metadata": {"k": "m1"},
            "messages": [
                {"role": "system", "content": "s1"},
                {"role": "developer", "content": [{"type": "text", "text": "s2"}]},
                {"role": "user", "name": "t0", "content": [
                    {"type": "text", "text": "t1", "cache_control": {"type": "ephemeral"}},
                    {"type": "image_url", "image_url": {"url": IMAGE, "detail": "low"}},
                    {"type": "image_url", "image_url": {"url": "https://x.org/t2"}},
                    {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
                    {"type": "file", "file": {"filename": "t3", "file_data": "AAAA"}},
                    {"type": "dream", "of": "o1"},
                ]},
                {"role": "assistant", "content": None, "refusal": "t4", "reasoning_content": "r1", "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":"a1"}'}},
                    {"id": "d", "type": "custom", "custom": {"name": "g", "input": "a2"}},
                ]},
                {"role": "assistant", "content": "t5", "audio": {"id": "x"},
                 "function_call": {"name": "f", "arguments": '"a3"'}},
                {"role": "tool", "tool_call_id": "c", "content": "e1"},
                {"role": "tool", "tool_call_id": "d", "content": [{"type": "text", "text": "e2"}]},
                {"role": "function", "name": "e4", "content": "e3"},
            ],
            "tools": [
                {"type": "function", "function": {"name": "n1", "description": "d1", "parameters": {"x": "d2"}}},
                {"type": "custom", "custom": {"name": "n2", "description": "d3", "format": {"x": "d4"}}},
                {"type": "web_search", "hint": "d7"},
            ],
            "response_format": {"type": "json_schema", "json_schema": {"name": "n3", "schema": {"x": "d5"}}},
            "prediction": {"type": "content", "content": "t6"},
            "stop": ["o2"],
        },
        {
            "text": ["t0", "t1", "https://x.org/t2", "t3", "t4", "t5", "t6"],
            "system": ["s1", "s2"],
            "reasoning": ["r1"],
            "arguments": ["a1", "a2", "a3"],
            "results": ["e1", "e2", "e3", "e4"],
            "names": ["n1", "n2", "n3"],
            "descriptions": ["d1", "d2", "d3", "d4", "d5", "d7"],
            "other": ["o1", "o2", "u1", "m1"],
        },
        {"image": 2, "audio": 1, "file": 1},
    ),
    (
        "responses",
        {
            "model": "m",
            "instructions": "s1",
            "input": [
                {"role": "system", "content": "s2"},
                {"role": "user", "content": "t1"},
                {"type": "message", "role": "user", "content": [
                    {"type": "input_text", "text": "t2"},
                    {"type": "input_image", "image_url": IMAGE},
                    {"type": "input_file", "file_id": "f", "filename": "t3"},
                ]},
                {"type": "message", "role": "assistant", "content": [
                    {"type": "output_text", "text": "t4",
                     "annotations": [{"type": "url_citation", "url": "t5", "title": "t6", "start_index": 0,
                                      "end_index": 2}]},
                    {"type": "refusal", "refusal": "t7"},
                ]},
                {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "r1"}],
                 "content": [{"type": "reasoning_text", "text": "r2"}], "encrypted_content": "AAAA"},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a":"a1"}'},
                {"type": "function_call_output", "call_id": "c", "output": "e1"},
                {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "e2"}]},
                {"type": "custom_tool_call", "call_id": "c", "name": "f", "input": "a2"},
                {"type": "mcp_call", "name": "f", "server_label": "s", "arguments": '"a3"', "output": "e3"},
                {"type": "code_interpreter_call", "code": "a4", "outputs": [{"type": "logs", "logs": "e4"}]},
                {"type": "web_search_call", "action": {"type": "search", "query": "a5"}},
                {"type": "image_generation_call", "result": "AAAA", "revised_prompt": "t8"},
                {"type": "mcp_list_tools", "tools": [{"name": "d5"}], "server_label": "s"},
                {"type": "item_reference", "id": "x"},
                {"type": "dream", "of": "o1"},
            ],
            "tools": [
                {"type": "function", "name": "n1", "description": "d1", "parameters": {"x": "d2"}, "strict": True},
                {"type": "mcp", "server_label": "s", "server_url": "t9", "authorization": "secret",
                 "headers": {"a": "secret"}, "server_description": "d3"},
                {"type": "file_search", "vector_store_ids": ["d6"]},
            ],
            "text": {"format": {"type": "json_schema", "schema": {"x": "d4"}}},
            "prompt": {"id": "p", "variables": {"v": "t10"}},
        },
        {
            "text": ["t1", "t2", "t3", "t4", "t5", "t6", "t7", "t8", "t9", "t10"],
            "system": ["s1", "s2"],
            "reasoning": ["r1", "r2"],
            "arguments": ["a1", "a2", "a3", "a4", "a5"],
            "results": ["e1", "e2", "e3", "e4"],
            "names": ["n1"],
            "descriptions": ["d1", "d2", "d3", "d4", "d5", "d6"],
            "other": ["o1"],
        },
        {"image": 2, "file": 1, "encrypted": 1},
    ),
    (
        "messages",
        {
            "model": "m",
            "max_tokens": 9,
            "system": [{"type": "text", "text": "s1", "cache_control": {"type": "ephemeral"}}],
            "messages": [
                {"role": "user", "content": "t1"},
                {"role": "user", "content": [
                    {"type": "text", "text": "t2"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
                    {"type": "image", "source": {"type": "url", "url": "t3"}},
                    {"type": "document", "title": "t4", "context": "t5",
                     "source": {"type": "text", "media_type": "text/plain", "data": "t6"}},
                    {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AAAA"}},
                    {"type": "search_result", "source": "e4", "title": "e5",
                     "content": [{"type": "text", "text": "e6"}]},
                ]},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "r1", "signature": "sig"},
                    {"type": "redacted_thinking", "data": "AAAA"},
                    {"type": "tool_use", "id": "c", "name": "f", "input": {"a": "a1"}},
                    {"type": "dream", "of": "o1"},
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "c", "content": "e1"},
                    {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "e2"}]},
                    {"type": "code_execution_tool_result", "tool_use_id": "c", "content": {"stdout": "e3"}},
                ]},
            ],
            "tools": [{"name": "n1", "description": "d1", "input_schema": {"x": "d2"}}],
            "metadata": {"user_id": "o2"},
            "mcp_servers": [{"type": "url", "url": "t7", "name": "s", "authorization_token": "secret"}],
        },
        {
            "text": ["t1", "t2", "t3", "t4", "t5", "t6", "t7"],
            "system": ["s1"],
            "reasoning": ["r1"],
            "arguments": ["a1"],
            "results": ["e1", "e2", "e3", "e4", "e5", "e6"],
            "names": ["n1"],
            "descriptions": ["d1", "d2"],
            "other": ["o1", "o2"],
        },
        {"image": 2, "file": 1, "encrypted": 1},
    ),
    (
        "generate",
        {
            "system_instruction": {"parts": [{"text": "s1"}]},
            "contents": [
                {"role": "user", "parts": [
                    {"text": "t1"},
                    {"inlineData": {"mimeType": "image/png", "data": "AAAA"}},
                    {"file_data": {"mime_type": "image/png", "file_uri": "t2"}},
                ]},
                {"role": "model", "parts": [
                    {"text": "r1", "thought": True},
                    {"functionCall": {"name": "f", "args": {"a": "a1"}}, "thoughtSignature": "sig"},
                    {"executableCode": {"language": "PYTHON", "code": "a2"}},
                    {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "e2"}},
                ]},
                {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"x": "e1"}}}]},
            ],
            "tools": [
                {"function_declarations": [{"name": "n1", "description": "d1", "parameters": {"x": "d2"}}]},
                {"googleSearch": {"x": "d4"}},
            ],
            "generationConfig": {"responseSchema": {"x": "d3"}, "stopSequences": ["o2"], "temperature": 0.5},
            "labels": {"a": "o1"},
        },
        {
            "text": ["t1", "t2"],
            "system": ["s1"],
            "reasoning": ["r1"],
            "arguments": ["a1", "a2"],
            "results": ["e1", "e2"],
            "names": ["n1"],
            "descriptions": ["d1", "d2", "d3", "d4"],
            "other": ["o1", "o2"],
        },
        {"file": 2},
    ),
    (
        "converse",
        {
            "system": [{"text": "s1"}, {"cachePoint": {"type": "default"}}],
            "messages": [
                {"role": "user", "content": [
                    {"text": "t1"},
                    {"image": {"format": "png", "source": {"bytes": "AAAA"}}},
                    {"document": {"format": "txt", "name": "t2", "source": {"text": "t3"}}},
                    {"guardContent": {"text": {"text": "t4", "qualifiers": ["query"]}}},
                ]},
                {"role": "assistant", "content": [
                    {"reasoningContent": {"reasoningText": {"text": "r1", "signature": "sig"}}},
                    {"toolUse": {"toolUseId": "c", "name": "f", "input": {"a": "a1"}}},
                    {"dream": {"of": "o1"}},
                ]},
                {"role": "user", "content": [
                    {"toolResult": {"toolUseId": "c", "status": "success",
                                    "content": [{"text": "e1"}, {"json": {"x": "e2"}}]}},
                ]},
            ],
            "toolConfig": {"tools": [
                {"toolSpec": {"name": "n1", "description": "d1", "inputSchema": {"json": {"x": "d2"}}}}
            ]},
            "promptVariables": {"a": {"text": "t5"}},
            "inferenceConfig": {"maxTokens": 9, "stopSequences": ["o2"]},
        },
        {
            "text": ["t1", "t2", "t3", "t4", "t5"],
            "system": ["s1"],
            "reasoning": ["r1"],
            "arguments": ["a1"],
            "results": ["e1", "e2"],
            "names": ["n1"],
            "descriptions": ["d1", "d2"],
            "other": ["o1", "o2"],
        },
        {"image": 1},
    ),
    ("completions", {"model": "m", "prompt": ["t1", "t2"], "suffix": "t3", "stop": "o1"},
     {"text": ["t1", "t2", "t3"], "other": ["o1"]}, {}),
    ("completions", {"model": "m", "prompt": "t1"}, {"text": ["t1"]}, {}),
    ("completions", {"model": "m", "prompt": [1, 2, 3]}, {}, {}),
    ("embeddings", {"model": "m", "input": ["t1", "t2"], "encoding_format": "float"}, {"text": ["t1", "t2"]}, {}),
    ("embeddings", {"model": "m", "input": "t1", "user": "o1"}, {"text": ["t1"], "other": ["o1"]}, {}),
    ("moderations", {"input": [{"type": "text", "text": "t1"}, {"type": "image_url", "image_url": {"url": IMAGE}}]},
     {"text": ["t1"]}, {"image": 1}),
    ("rerank", {"model": "m", "query": "t1", "documents": ["t2", {"text": "t3", "more": "o1"}], "top_n": 2},
     {"text": ["t1", "t2", "t3"], "other": ["o1"]}, {}),
    ("embed", {"model": "m", "content": {"parts": [{"text": "t1"}]}, "title": "t2"}, {"text": ["t1", "t2"]}, {}),
    ("embed_batch", {"requests": [{"model": "m", "content": {"parts": [{"text": "t1"}]}}]}, {"text": ["t1"]}, {}),
    ("count_tokens", {"model": "m", "system": "s1", "messages": [{"role": "user", "content": "t1"}]},
     {"system": ["s1"], "text": ["t1"]}, {}),
    ("count", {"generateContentRequest": {"contents": [{"parts": [{"text": "t1"}]}]}, "contents": "t2"},
     {"text": ["t1", "t2"]}, {}),
    ("images", {"model": "m", "prompt": "t1", "size": "auto"}, {"text": ["t1"]}, {}),
    ("speech", {"model": "m", "input": "t1", "voice": "x", "instructions": "s1"},
     {"text": ["t1"], "system": ["s1"]}, {}),
]  # fmt: skip

ANSWERS: list[tuple[str, Any, Kinds, dict[str, int]]] = [
    (
        "chat",
        {
            "id": "c",
            "model": "m",
            "choices": [
                {"index": 0, "finish_reason": "stop", "logprobs": None, "message": {
                    "role": "assistant", "content": "t1", "reasoning": "r1",
                    "reasoning_details": [{"type": "reasoning.text", "text": "r2"},
                                          {"type": "reasoning.encrypted", "data": "AAAA"}],
                    "annotations": [{"type": "url_citation", "url_citation": {"url": "t2", "title": "t3",
                                                                              "start_index": 0, "end_index": 1}}],
                    "audio": {"id": "a", "data": "AAAA", "transcript": "t4", "expires_at": 1},
                    "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": '{"a":"a1"}'}}]}},
                {"index": 1, "message": {"role": "assistant", "content": "t5", "extra": "o1"}},
            ],
            "usage": {"total_tokens": 3},
        },
        {"text": ["t1", "t2", "t3", "t4", "t5"], "reasoning": ["r1", "r2"], "arguments": ["a1"], "other": ["o1"]},
        {"audio": 1, "encrypted": 1},
    ),
    ("completions", {"choices": [{"index": 0, "text": "t1", "finish_reason": "stop"}]}, {"text": ["t1"]}, {}),
    (
        "responses",
        {
            "id": "r",
            "status": "completed",
            "instructions": "q1",
            "tools": [{"name": "q2"}],
            "metadata": {},
            "output": [
                {"type": "message", "role": "assistant", "status": "completed",
                 "content": [{"type": "output_text", "text": "t1", "annotations": [], "logprobs": []}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": '"a1"', "status": "completed"},
            ],
            "usage": {"total_tokens": 3},
        },
        {"text": ["t1"], "arguments": ["a1"], "echo": ["q1", "q2"]},
        {},
    ),
    (
        "messages",
        {
            "id": "m",
            "type": "message",
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "r1", "signature": "sig"},
                {"type": "text", "text": "t1", "citations": [
                    {"type": "char_location", "cited_text": "t2", "document_index": 0, "document_title": "t3"}]},
                {"type": "tool_use", "id": "c", "name": "f", "input": {"a": "a1"}},
            ],
            "stop_reason": "stop_sequence",
            "stop_sequence": "o1",
            "usage": {"input_tokens": 1},
        },
        {"text": ["t1", "t2", "t3"], "reasoning": ["r1"], "arguments": ["a1"], "other": ["o1"]},
        {},
    ),
    (
        "generate",
        [
            {"candidates": [{"content": {"role": "model", "parts": [
                {"text": "t1"}, {"functionCall": {"name": "f", "args": {"a": "a1"}}}]}, "finishReason": "STOP",
                "groundingMetadata": {"groundingChunks": [{"web": {"uri": "t2", "title": "t3"}}]}}]},
            {"candidates": [{"content": {"role": "model", "parts": [{"text": "r1", "thought": True}]}}]},
        ],
        {"text": ["t1", "t2", "t3"], "arguments": ["a1"], "reasoning": ["r1"]},
        {},
    ),
    (
        "converse",
        {
            "output": {"message": {"role": "assistant", "content": [
                {"text": "t1"},
                {"toolUse": {"toolUseId": "c", "name": "f", "input": {"a": "a1"}}},
                {"citationsContent": {"content": [{"text": "t2"}], "citations": [
                    {"title": "t3", "sourceContent": [{"text": "t4"}], "location": {"web": {"url": "x"}}}]}},
                {"reasoningContent": {"redactedContent": "AAAA"}},
            ]}},
            "stopReason": "end_turn",
            "usage": {"totalTokens": 1},
            "trace": {"guardrail": {"modelOutput": ["t5"]}},
        },
        {"text": ["t1", "t2", "t3", "t4", "t5"], "arguments": ["a1"]},
        {"encrypted": 1},
    ),
    ("rerank", {"results": [{"index": 0, "relevance_score": 0.5, "document": {"text": "t1"}}]}, {"text": ["t1"]}, {}),
    ("embeddings", {"data": [{"embedding": [0.5], "index": 0}], "model": "m"}, {}, {}),
    ("images", {"created": 1, "data": [{"b64_json": "AAAA", "revised_prompt": "t1"}]}, {"text": ["t1"]}, {"image": 1}),
    ("chat", {"error": {"message": "t1", "code": 400}}, {"text": ["t1"]}, {}),
]  # fmt: skip


def _values(text: str) -> list[str]:
    """The strings in a piece of JSON; names of members are not of our making here."""

    def walk(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [one for item in value.values() for one in walk(item)]
        if isinstance(value, list):
            return [one for item in value for one in walk(item)]
        return [value] if isinstance(value, str) else []

    return walk(json.loads(text))


def proved(texts: Any, kinds: Kinds, opaque: dict[str, int]) -> dict[Any, str]:
    found: dict[str, list[str]] = {}
    for piece in texts.pieces:
        assert piece.key[-1] == piece.kind
        found.setdefault(piece.kind, []).extend(_values(piece.text) if piece.json else [piece.text])
    found = {kind: sorted(one for one in several if one in _known(kinds)) for kind, several in found.items()}
    assert {kind: several for kind, several in found.items() if several} == {
        kind: sorted(several) for kind, several in kinds.items()
    }
    assert texts.opaque == opaque
    assert len({piece.key for piece in texts.pieces}) == len(texts.pieces)
    return {piece.key: piece.text for piece in texts.pieces}


def _known(kinds: Kinds) -> set[str]:
    return {one for several in kinds.values() for one in several}


def changed(value: Any, known: set[str]) -> Any:
    """The value with those strings in capitals."""
    if isinstance(value, dict):
        return {name: changed(item, known) for name, item in value.items()}
    if isinstance(value, list):
        return [changed(item, known) for item in value]
    if isinstance(value, str):
        if value in known:
            return f"<{value}>"
        for one in known:
            if f'"{one}"' in value:
                return value.replace(f'"{one}"', f'"<{one}>"')
    return value


def renamed(texts: Any, known: set[str]) -> dict[Any, str]:
    new = {}
    for piece in texts.pieces:
        if piece.json:
            new[piece.key] = json.dumps(changed(json.loads(piece.text), known), separators=(",", ":"))
        elif piece.text in known:
            new[piece.key] = f"<{piece.text}>"
    return new


@pytest.mark.parametrize(("operation", "value", "kinds", "opaque"), REQUESTS, ids=[one[0] for one in REQUESTS])
def test_requests(operation: str, value: Any, kinds: Kinds, opaque: dict[str, int]) -> None:
    fields = _fields(json.dumps(value).encode())
    texts = request_texts(operation, fields)
    proved(texts, kinds, opaque)
    assert texts.replaced({}) == {}
    told = {**fields, **texts.replaced(renamed(texts, _known(kinds)))}
    out = {name: json.loads(bytes(raw)) for name, raw in told.items()}
    if operation == "messages":
        assert out["messages"][2]["content"][0]["signature"] == ""
        out["messages"][2]["content"][0]["signature"] = "sig"
        assert len(texts.signed) == 1
    if operation == "converse":
        block = out["messages"][1]["content"][0]["reasoningContent"]["reasoningText"]
        assert block["signature"] == ""
        block["signature"] = "sig"
    if operation == "responses":  # places in a text move with it
        note = out["input"][3]["content"][0]["annotations"][0]
        assert (note["start_index"], note["end_index"]) == (0, 4)
        note["end_index"] = 2
    assert out == changed(value, _known(kinds))


@pytest.mark.parametrize(("operation", "value", "kinds", "opaque"), ANSWERS, ids=[one[0] for one in ANSWERS])
def test_answers(operation: str, value: Any, kinds: Kinds, opaque: dict[str, int]) -> None:
    source = json.dumps(value).encode()
    texts = answer_texts(operation, source)
    proved(texts, kinds, opaque)
    assert texts.replaced({}) is source
    out = texts.replaced(renamed(texts, _known(kinds)))
    seen = json.dumps(json.loads(out))
    for one in _known(kinds):
        assert f"<{one}>" in seen
        assert f'"{one}"' not in seen
    same = texts.replaced({piece.key: piece.text for piece in texts.pieces})
    assert json.loads(same) == value
