"""wire.guard.llm: places in which a provider says something again, says it late, or says it where nobody expects it."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.unit.wire.guard.llm.driver import guarded, told

from tollhouse.wire.eventstream import frame as binary
from tollhouse.wire.guard.catalogue import named
from tollhouse.wire.guard.llm import answer_texts
from tollhouse.wire.guard.patterns import PatternSet
from tollhouse.wire.guard.rules import Rule
from tollhouse.wire.sse import frame

SECRET = "ghp_" + "a1B2c3D4e5" * 3 + "f6G7h8"
DONE = b"data: [DONE]\n\n"
Attack = tuple[str, list[bytes]]


def data(value: Any) -> bytes:
    return frame(json.dumps(value).encode())


def event(kind: str, **more: Any) -> bytes:
    return frame(json.dumps({"type": kind, **more}).encode(), kind.encode())


def message(name: str, value: Any) -> bytes:
    return binary(name.encode(), json.dumps(value).encode())


def chunk(delta: Any, index: int = 0, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": finish, **more}
    return data({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]})


def proof(*tokens: str) -> Any:
    return {"content": [{"token": one, "logprob": -0.1, "top_logprobs": [{"token": one}]} for one in tokens]}


def by(size: int, text: str) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def chat(a: str, b: str) -> dict[str, list[bytes]]:
    s = a + b
    stop = chunk({}, finish="stop")
    cited = {"url": f"https://x.example/{s}", "title": s, "start_index": 0, "end_index": 1}
    lines = json.dumps({"choices": [{"index": 0, "delta": {"content": f"{s} "}}]}, indent=1).splitlines()
    return {
        "log-probs with the text": [chunk({"content": one}, logprobs=proof(one)) for one in (a, b, " .")],
        "log-probs before it": [chunk({"content": ""}, logprobs=proof(a)), chunk({"content": a}, logprobs=proof(b)),
                                chunk({"content": b}), stop],
        "log-probs behind it": [chunk({"content": a}), chunk({"content": ""}, logprobs=proof(a)), chunk({"content": b}),
                                chunk({}, logprobs=proof(b)), stop],
        "log-probs at the end": [chunk({"content": a}), chunk({"content": b}), chunk({}, finish="stop",
                                 logprobs=proof(a, b))],
        "log-probs alone": [chunk({"content": "hi"}), chunk({}, finish="stop", logprobs=proof(a, b))],
        "log-probs first": [data({"choices": [{"logprobs": proof(p), "index": 0, "delta": {"content": p}}]})
                            for p in (a, b)],
        "log-probs of another form": [chunk({"content": "hi"}, logprobs={"content": {"all": s}})],
        "transcript": [chunk({"audio": {"id": "a", "transcript": a}}), chunk({"audio": {"transcript": b}}), stop],
        "choices": [chunk({"content": p}, n) for p in by(4, s) for n in (0, 1, 2)] + [
                    chunk({}, n, "stop") for n in (1, 2, 0)],
        "calls": [chunk({"tool_calls": [{"index": n, "function": {"arguments": p}} for n in (0, 1)]})
                  for p in by(4, s)] + [stop],
        "an error": [chunk({"content": a}), data({"error": {"message": f"bad key {s}"}})],
        "an error that is a text": [chunk({"content": a}), data({"error": f"bad key {s}"})],
        "comments": [f": {s}\n\n".encode(), chunk({"content": "hi"}), b": x\n\n"],
        "a comment in an event": [f": {s}\n".encode() + chunk({"content": "hi"})],
        "an id": [f"id: {s}\n".encode() + chunk({"content": "hi"})],
        "a name": [f"event: {s}\n".encode() + chunk({"content": "hi"})],
        "an unknown field": [f"x-{s}: 1\n".encode() + chunk({"content": "hi"})],
        "several lines": ["".join(f"data: {line}\r\n" for line in lines).encode() + b"\r\n"],
        "a byte order mark": [b"\xef\xbb\xbf" + chunk({"content": f"{s} "})],
        "citations": [chunk({"annotations": [{"type": "url_citation", "url_citation": cited}]})],
        "unknown members": [chunk({"content": "x", "provider": {"a": s}}), chunk({"image": a}), chunk({"image": b})],
        "a message in a stream": [data({"choices": [{"index": 0, "message": {"content": s}}]})],
        "choices without numbers": [data({"choices": [{"delta": {"content": p}}]}) for p in (a, b)],
        "numbers that are texts": [data({"choices": [{"index": "0", "delta": {"content": p}}]}) for p in (a, b)],
        "parts and texts": [chunk({"content": [{"type": "text", "text": a}]}), chunk({"content": b})],
        "thoughts by two names": [chunk({"reasoning": p, "reasoning_content": p}) for p in (a, b)],
    }  # fmt: skip


def responses(a: str, b: str) -> dict[str, list[bytes]]:
    s = a + b
    at = {"item_id": "i", "output_index": 0, "content_index": 0}
    summary = {"item_id": "i", "output_index": 0, "summary_index": 0}

    def whole(*items: Any) -> bytes:
        return event("response.completed", response={"id": "r", "object": "response", "model": "m", "output": items})

    def part(text: str, **more: Any) -> Any:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": [], **more}

    def item(text: str, **more: Any) -> Any:
        return {"id": "i", "type": "message", "role": "assistant", "content": [part(text, **more)]}

    tokens = [{"token": a}, {"token": b}]
    return {
        "what is done is another text": [event("response.output_text.delta", **at, delta="hello"),
                                         event("response.output_text.done", **at, text=f"hello {s}"),
                                         whole(item(f"bye {s}"))],
        "what is done was never begun": [event("response.output_text.done", **at, text=f"hello {s}", logprobs=tokens),
                                         event("response.content_part.done", **at, part=part(s, logprobs=tokens)),
                                         whole(item(f"bye {s}"))],
        "log-probs": [*[event("response.output_text.delta", **at, delta=p, logprobs=[{"token": p}]) for p in (a, b)],
                      event("response.output_text.delta", **at, delta=" .", logprobs=[{"token": s}]),
                      event("response.output_text.done", **at, text=f"{s} .", logprobs=tokens),
                      whole(item(f"{s} .", logprobs=tokens))],
        "log-probs of what comes": [event("response.output_text.delta", **at, delta="x", logprobs=[{"token": a}]),
                                    event("response.output_text.delta", **at, delta=" .", logprobs=[{"token": b}]),
                                    whole(item("x ."))],
        "a refusal": [*[event("response.refusal.delta", **at, delta=p) for p in (a, b)],
                      event("response.refusal.done", **at, refusal=s),
                      whole({"id": "i", "type": "message", "content": [{"type": "refusal", "refusal": s}]})],
        "a summary": [*[event("response.reasoning_summary_text.delta", **summary, delta=p) for p in (a, b)],
                      event("response.reasoning_summary_text.done", **summary, text=s),
                      event("response.reasoning_summary_part.done", **summary, part={"type": "x", "text": s}),
                      whole({"id": "i", "type": "reasoning", "summary": [{"type": "summary_text", "text": s}]})],
        "an answer that failed": [event("response.output_text.delta", **at, delta=a),
                                  event("response.failed", response={"id": "r", "error": {"message": f"key {s}"},
                                                                     "incomplete_details": {"reason": s}})],
        "a search": [event("response.web_search_call.searching", item_id="i", output_index=0, query=s),
                     whole({"id": "w", "type": "web_search_call", "action": {"query": s, "sources": [{"url": s}]}})],
        "a tool that failed": [event("response.mcp_call.failed", item_id="i", output_index=0, error=s),
                               whole({"id": "w", "type": "mcp_call", "arguments": "{}", "output": s, "error": s})],
        "a citation": [event("response.output_text.annotation.added", **at, annotation_index=0,
                             annotation={"type": "url_citation", "url": f"https://x.example/{s}", "title": s})],
        "an unknown event": [*[event("response.shell_call_command.delta", output_index=0, delta=p) for p in (a, b)],
                             event("response.shell_call_command.done", output_index=0, command=s)],
        "code that was run": [whole({"id": "w", "type": "code_interpreter_call", "code": s,
                                     "outputs": [{"type": "logs", "logs": s}]})],
    }  # fmt: skip


def messages(a: str, b: str) -> dict[str, list[bytes]]:
    s = a + b
    begin = {"id": "m", "type": "message", "role": "assistant", "model": "c", "usage": {}}
    call = {"type": "tool_use", "id": "t", "name": "f"}
    cited = {"type": "citations_delta", "citation": {"type": "char_location", "cited_text": s, "document_title": s}}
    found = {"type": "web_search_result", "title": s, "url": f"https://{s}.example", "page_age": s}

    def delta(**more: Any) -> bytes:
        return event("content_block_delta", index=0, delta=more)

    return {
        "a text in its beginning": [event("message_start", message={**begin, "content": [{"type": "text", "text": s}]}),
                                    event("content_block_start", index=0, content_block={"type": "text", "text": a}),
                                    delta(type="text_delta", text=b), event("message_stop")],
        "what ends and says more": [event("content_block_stop", index=0, content_block={"text": s}),
                                    event("ping", x=f"{s} {s} {s}"), event("message_stop", usage={"text": s})],
        "a stop": [event("message_delta", delta={"stop_reason": "refusal", "stop_sequence": s,
                                                 "stop_details": {"explanation": s}}, usage={})],
        "a citation": [delta(**cited)],
        "arguments in the beginning": [event("content_block_start", index=0, content_block={**call, "input": {"a": s}}),
                                       delta(type="input_json_delta", partial_json='{"a": "' + a),
                                       delta(type="input_json_delta", partial_json=b + '"}'), event("message_stop")],
        "what a server's tool found": [event("content_block_start", index=0, content_block={
                                             "type": "web_search_tool_result", "tool_use_id": "t", "content": [found]}),
                                       event("content_block_start", index=1, content_block={
                                             "type": "bash_code_execution_tool_result", "content": {"stdout": s}})],
    }  # fmt: skip


def generate(a: str, b: str) -> dict[str, list[bytes]]:
    s = a + b

    def said(*parts: Any, finish: str | None = None, **more: Any) -> bytes:
        candidate = {"content": {"parts": parts, "role": "model"}, "index": 0, **more}
        return data({"candidates": [candidate | ({"finishReason": finish} if finish else {})]})

    def proved(*tokens: str, name: str = "chosenCandidates") -> Any:
        return {name: [{"token": one} for one in tokens]}

    return {
        "code": [*[said({"executableCode": {"language": "PYTHON", "code": p}}) for p in (a, b)],
                 *[said({"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": p}}) for p in (a, b)]],
        "log-probs": [*[said({"text": p}, logprobsResult=proved(p)) for p in (a, b, " ")],
                      said(finish="STOP", logprobsResult=proved(a, b))],
        "log-probs by another name": [*[said({"text": p}, logprobs_result=proved(p, name="chosen_candidates"))
                                        for p in (a, b, " ")]],
        "grounding": [said({"text": "x"}, groundingMetadata={
                          "groundingChunks": [{"web": {"uri": f"https://{s}.example", "title": s}}],
                          "groundingSupports": [{"segment": {"endIndex": 1, "text": s}}], "webSearchQueries": [s]})],
        "parts": [said({"text": a}, {"text": b}),
                  said({"text": a, "thought": True}, {"text": "x"}, {"text": b, "thought": True}, finish="STOP")],
        "arguments": [said({"functionCall": {"name": "f", "args": {"a": s, "b": {"c": [s]}}}}, finish="STOP")],
        "a block": [data({"promptFeedback": {"blockReason": "OTHER", "blockReasonMessage": s}})],
        "a finish": [said({"text": "x"}, finish="OTHER", finishMessage=s)],
    }  # fmt: skip


def converse(a: str, b: str) -> dict[str, list[bytes]]:
    s = a + b

    def delta(**more: Any) -> bytes:
        return message("contentBlockDelta", {"contentBlockIndex": 0, "delta": more})

    end = message("messageStop", {"stopReason": "end_turn"})
    place = {"web": {"url": f"https://{s}.example", "domain": s}}
    return {
        "a thought": [*[delta(reasoningContent={"text": p}) for p in (a, b)], end],
        "a citation": [delta(citation={"title": s, "sourceContent": [{"text": s}], "location": place}), end],
        "a citation in pieces": [delta(text="x"), *[delta(citation={"sourceContent": [{"text": p}]}) for p in (a, b)],
                                 delta(text=" y"), end],
        "what a tool gave": [*[delta(toolResult=[{"text": p}]) for p in (a, b)], delta(toolResult=[{"json": {"a": s}}]),
                             end],
        "what is told at the end": [message("messageStop", {"stopReason": "end_turn",
                                                            "additionalModelResponseFields": {"a": s}}),
                                    message("metadata", {"usage": {}, "trace": {"guardrail": {"x": s}}})],
        "an exception": [binary(b"modelStreamErrorException", json.dumps({"message": s, "originalMessage": s}).encode(),
                                kind=b"exception")],
    }  # fmt: skip


def completions(a: str, b: str) -> dict[str, list[bytes]]:
    def said(text: str, finish: str | None = None, tokens: Any = None) -> bytes:
        return data({"choices": [{"text": text, "index": 0, "logprobs": tokens, "finish_reason": finish}]})

    def proved(*tokens: str) -> Any:
        return {"tokens": tokens, "token_logprobs": [-1.0], "text_offset": [0], "top_logprobs": [{tokens[0]: -1.0}]}

    return {
        "log-probs": [said(p, tokens=proved(p)) for p in (a, b, " ")],
        "log-probs at the end": [said(a), said(b), said("", "stop", proved(a, b))],
    }


AROUND = ("comments", "a comment in an event", "a name", "an id", "an unknown field")  # it goes
MADE = {one.__name__: one for one in (chat, responses, messages, generate, converse, completions)}
NAMES = [(operation, name) for operation, make in MADE.items() for name in make("a", "b")]


@pytest.fixture(scope="module")
def patterns() -> PatternSet:
    return PatternSet(named(["secrets", "email"]), max_match=2048)


def mask(rule: Rule, text: str) -> str:
    return f"[{rule.name}]"


def texts(value: Any, at: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], str]]:
    """All texts, with their places: a list's items are one place, unless they have a number."""
    if isinstance(value, str):
        yield at, value
    elif isinstance(value, dict):
        number = value.get("index", value.get("output_index", ""))
        for name, one in value.items():
            yield at, name
            yield from texts(one, (*at, number, name))
    elif isinstance(value, list):
        for one in value:
            yield from texts(one, at)


def seen(operation: str, out: bytes) -> list[str]:
    """What one could put together of what has left."""
    joined: dict[tuple[Any, ...], str] = {}
    for told_event in told(operation, out):
        for at, text in texts(told_event, (told_event.get("type", ""),)):
            joined[at] = joined.get(at, "") + text
    return list(joined.values())


@pytest.mark.parametrize(("operation", "name"), NAMES)
def test_no_place_says_a_secret(patterns: PatternSet, operation: str, name: str) -> None:
    for cut in (4, 11, 30):
        blocks = [*MADE[operation](SECRET[:cut], SECRET[cut:])[name], *([DONE] if operation == "chat" else [])]
        for sent in (blocks, [b"".join(blocks)]):
            out = guarded(operation, patterns, mask, sent)
            assert SECRET.encode() not in out
            assert not any(SECRET in text for text in seen(operation, out))
            assert b"[github]" in out or "log-probs" in name or name in AROUND
            if out.count(b"\n\n") > 1 and operation != "converse" and name != "several lines":
                assert out.count(b"\n\n") == b"".join(blocks).count(b"\n\n")


@pytest.mark.parametrize(("operation", "name"), NAMES)
def test_nothing_found_is_the_same_bytes(patterns: PatternSet, operation: str, name: str) -> None:
    blocks = MADE[operation]("The quick brown ", "fox jumps.")[name]
    assert guarded(operation, patterns, mask, blocks) == b"".join(blocks)


def test_log_probs_of_whole_answers_go_with_what_they_prove(patterns: PatternSet) -> None:
    for text, tokens, kept in (("Hi.", ["Hi", "."], True), ("Hi.", ["Hi", ".", "<|end|>"], True),
                               ("Hi.", [SECRET[:9], SECRET[9:]], False),
                               (f"{SECRET}.", [SECRET[:9], SECRET[9:], "."], False)):  # fmt: skip
        choice = {"index": 0, "message": {"content": text}, "logprobs": proof(*tokens), "finish_reason": "stop"}
        body = json.dumps({"id": "c", "choices": [choice]}).encode()
        read = answer_texts("chat", body)
        changed = {one.key: new for one in read.pieces if (new := one.masked(patterns, mask)) != one.text}
        out = read.replaced(changed)
        assert (out == body) == kept
        assert (json.loads(out)["choices"][0]["logprobs"] is not None) == kept
        assert SECRET[9:].encode() not in out


def test_names_of_members_that_nobody_knows(patterns: PatternSet) -> None:
    message = {"role": "assistant", "content": "Hi", "ada@example.org": {"bob@example.org": 1}, "usual_name": "x"}
    body = json.dumps({"id": "c", "choices": [{"index": 0, "message": message}], SECRET: 1}).encode()
    read = answer_texts("chat", body)
    assert (SECRET, "names") in {(piece.text, piece.kind) for piece in read.pieces}
    changed = {one.key: new for one in read.pieces if (new := one.masked(patterns, mask)) != one.text}
    out = json.loads(read.replaced(changed))
    assert out["choices"][0]["message"] == {
        "role": "assistant", "content": "Hi", "[email]": {"[email]": 1}, "usual_name": "x",
    }  # fmt: skip
    chunks = [chunk({"content": "Hi", "ada@example.org": 1}), chunk({SECRET: "x"}), chunk({}, finish="stop"), DONE]
    out_stream = guarded("chat", patterns, mask, chunks)
    assert b"ada@" not in out_stream
    assert SECRET.encode() not in out_stream
