"""What guards cost: patterns on whole texts, and masks in streams.

    python bench/guard.py [--gate]

One process, nothing else. Texts: English prose, German (every sentence has letters outside of ASCII), JSON of a tool's
result, arguments of a tool call in small pieces. Rules: twenty of the catalogue's, and all of it. For streams the
chunks have 4 characters (a token) and 24; printed are microseconds a chunk, the worst chunk, and how many characters
were held back after a chunk: on average, at the 99th percentile, at most. Adversarial texts are those that look like
the beginning of a match for as long as they can. The best of several turns counts.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import msgspec

from tollhouse.core.errors import Failure
from tollhouse.core.http import Sink
from tollhouse.core.reply import Reply
from tollhouse.policies.guardrails.stages import Windowed
from tollhouse.policies.guardrails.streams import Guarded
from tollhouse.wire.guard.catalogue import named
from tollhouse.wire.guard.channel import Channel, edited
from tollhouse.wire.guard.json_text import JsonChannel
from tollhouse.wire.guard.llm import Event, answer_texts, request_texts, stream_texts
from tollhouse.wire.guard.patterns import PatternSet
from tollhouse.wire.guard.placeholders import Placeholders, derived_key, placeholder_patterns
from tollhouse.wire.guard.rules import Rule
from tollhouse.wire.guard.window import StreamWindow
from tollhouse.wire.sse import frame

TURNS = 9
SIZE = 4096
SCAN = 60.0
"""Microseconds promised for twenty patterns on 4 KB."""
CHUNK = 8.0
"""Microseconds promised for a chunk of a stream."""
READ = 3.0
"""Microseconds promised for finding the text of a stream's event."""

TWENTY = (
    "email", "card", "iban", "phone", "us_ssn", "ca_sin", "uk_nino", "de_tax_id", "fr_nir", "es_dni", "aws", "google",
    "github", "slack", "openai", "anthropic", "stripe", "jwt", "private_key", "bearer",
)  # fmt: skip
ENGLISH = (
    "The gateway answers each request with the model's text, in 3 parts; see section 4.2 for details (updated on "
    '2026-03-14, about 1,250 words). "That\'s no question of if," she said, but of when: by 10:30 the first of them '
    "had already gone, and the other two followed soon. "
)
GERMAN = (
    "Die Straße führt über schöne Brücken; für die Überprüfung genügen täglich fünf Minuten. „Größere Änderungen“, "
    "sagte er, „müssen natürlich rückgängig gemacht werden können“ – spätestens nächsten März. "
)
SAID: dict[str, Callable[[str], object]] = {
    "chat": lambda text: {
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1790000000, "model": "m",
        "service_tier": "default", "system_fingerprint": "fp_1",
        "choices": [{"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}],
    },
    "responses": lambda text: {
        "type": "response.output_text.delta", "item_id": "msg_1", "output_index": 0, "content_index": 0, "delta": text,
        "logprobs": [], "sequence_number": 12, "obfuscation": "abcdefgh",
    },
    "messages": lambda text: {
        "type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text},
    },
    "messages arguments": lambda text: {
        "type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": text},
    },
    "generate": lambda text: {
        "candidates": [{"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}],
        "usageMetadata": {"promptTokenCount": 9, "totalTokenCount": 12}, "modelVersion": "m", "responseId": "r",
    },
}  # fmt: skip
"""The usual events, by operation."""
ADVERSARIAL = {
    "x": "x" * SIZE,
    "digits": "4" * SIZE,
    "half a JWT": ("eyJ" + "aGVsbG8gd29ybGQ" * 300)[:SIZE],
    "half a key": ("-----BEGIN PRIVATE KEY-----\n" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVph\n" * 120)[:SIZE],
    "a key of white space": ("-----BEGIN PRIVATE KEY-----\n" + " \n" * SIZE)[:SIZE],
    "zero width": "s\u200bk\u200b-" + "a\u200b" * (SIZE // 2),
    "zero width alone": ("sk-" + "\u200b" * SIZE)[:SIZE],
    "escapes": ("sk-" + "\\u0061" * SIZE)[:SIZE],
    "backslashes": ("sk-" + "\\" * SIZE)[:SIZE],
}  # fmt: skip


def mask(rule: Rule, text: str) -> str:
    """What stands in place of a match."""
    return f"[{rule.name}]"


def filled(text: str) -> str:
    """The text up to 4 KB."""
    return (text * (SIZE // len(text) + 1))[:SIZE]


def best(work: Callable[[], object], times: int) -> float:
    """Microseconds."""
    work()
    turns = []
    for _ in range(TURNS):
        began = time.perf_counter()
        for _ in range(times):
            work()
        turns.append((time.perf_counter() - began) / times)
    return min(turns) * 1e6


def scans(sets: dict[str, PatternSet]) -> float:
    """Whole texts; gives what is promised a figure."""
    texts = {
        "English": filled(ENGLISH),
        "German": filled(GERMAN),
        "JSON": filled(json.dumps({"rows": [{"id": n, "name": f"item {n}", "price": n * 1.5} for n in range(80)]})),
        "English, 1 match": filled(ENGLISH)[: SIZE // 2] + " ada@example.org " + filled(ENGLISH)[SIZE // 2 : -17],
    }
    promised = 0.0
    print(f"{'a text of 4 KB, us':24}" + "".join(f"{name:>12}" for name in sets))
    for name, text in texts.items():
        took = {kind: best(partial(patterns.find, text), 60) for kind, patterns in sets.items()}
        print(f"{name:24}" + "".join(f"{one:12.1f}" for one in took.values()))
        promised = max(promised, next(iter(took.values())))
    return promised


def streams(sets: dict[str, PatternSet]) -> tuple[float, float]:
    """Texts in chunks; gives what is promised a figure: of plain texts, and of adversarial ones."""
    promised = hard = 0.0
    print(f"\n{'a stream, us a chunk':34}{'mean':>8}{'worst':>8}   held: mean, p99, most")
    for kind, patterns in sets.items():
        for name, text in (("English", filled(ENGLISH)), ("German", filled(GERMAN))):
            for size in (4, 24):
                took = stream(f"{kind}, {name}, {size}", text, size, partial(Channel, patterns, mask))
                if name == "English":
                    promised = max(promised, took)
    twenty = next(iter(sets.values()))
    arguments = json.dumps({"path": "/srv/\u00e4/report.md", "text": filled(ENGLISH), "n": 12})
    stream("arguments, 4", arguments[:SIZE], 4, partial(JsonChannel, twenty, mask))
    held = Placeholders(derived_key(b"0123456789abcdef", "", ""))
    answer = "".join(held.mask(twenty.rules[0], f"{n}@example.org") + filled(ENGLISH)[:200] for n in range(18))
    unmask = placeholder_patterns()
    stream("turned back, 4", answer, 4, partial(Channel, unmask, held.value))
    for name, text in ADVERSARIAL.items():
        hard = max(hard, stream(f"adversarial: {name}, 4", text, 4, partial(Channel, twenty, mask)))
    windows(twenty)
    return promised, hard


def stream(name: str, text: str, size: int, opened: Callable[[], Channel]) -> float:
    """One text in chunks: microseconds a chunk, and what was held."""
    chunks = [text[at : at + size] for at in range(0, len(text), size)]

    def run() -> None:
        channel = opened()
        for chunk in chunks:
            channel.feed(chunk)
        channel.finish()

    took = best(run, 3) / len(chunks)
    channel, held, out = opened(), [], ""
    for chunk in chunks:
        out += edited(channel.feed(chunk))
        held.append(len(channel.held))
    worst = [float("inf")] * len(chunks)
    for _ in range(TURNS):
        channel = opened()
        for number, chunk in enumerate(chunks):
            began = time.perf_counter()
            channel.feed(chunk)
            worst[number] = min(worst[number], (time.perf_counter() - began) * 1e6)
    held.sort()
    most = f"{statistics.mean(held):.1f}, {held[len(held) * 99 // 100]}, {held[-1]}"
    print(f"{name:34}{took:8.2f}{max(worst):8.0f}   {most}")
    return took


def windows(patterns: PatternSet) -> None:
    """The events of a stream: what holding them back costs on top."""
    text = filled(ENGLISH)
    chunks = [text[at : at + 4] for at in range(0, len(text), 4)]

    def run() -> None:
        window: StreamWindow[bytes] = StreamWindow(patterns, mask)
        for chunk in chunks:
            window.push(b"", (0, chunk))
        window.close()

    print(f"{'events, English, 4':34}{best(run, 3) / len(chunks):8.2f}")


class _Upstream:
    """A source that the bench feeds, and a reader that takes all."""

    sink: Sink

    def start(self, sink: Sink) -> None:
        """Whoever stands before it."""
        self.sink = sink

    def pause(self) -> None:
        """Never slow."""

    def resume(self) -> None:
        """Nor quick."""

    def close(self) -> None:
        """It stays."""

    def send(self, data: bytes) -> None:
        """Read."""

    def end(self, failure: Failure | None = None) -> None:
        """Over."""


def taps(patterns: PatternSet) -> float:
    """What a guard costs a stream of chat completions, from the provider's bytes to the client's; gives the dearest
    that is promised."""
    print(f"\n{'a chunk, end to end':34}{'mean':>8}")
    promised = 0.0
    text = filled(ENGLISH)
    for size in (4, 24):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        blocks = [b'data: {"id":"c","choices":[{"index":0,"delta":{"content":%b}}]}\n\n' % json.dumps(piece).encode()
                  for piece in pieces]  # fmt: skip

        def run(blocks: list[bytes] = blocks) -> float:
            upstream = _Upstream()
            reply = Reply(200, [], b"", upstream, taps=[])
            Guarded(stream_texts("chat"), [Windowed(patterns, mask, None)], None).over(reply)
            assert reply.source is not None
            reply.source.start(upstream)
            send = upstream.sink.send
            began = time.perf_counter()
            for block in blocks:
                send(block)
            return time.perf_counter() - began

        took = min(run() for _ in range(TURNS)) / len(blocks) * 1e6
        promised = max(promised, took)
        print(f"{f'chat, 20 names, {size}':34}{took:8.2f}")
    return promised


def events(patterns: PatternSet) -> float:
    """Where texts stand in the APIs: events of a stream, alone and with what is done with them; gives the slowest of
    those alone. Then a request of 40 messages and an answer."""
    text = filled(ENGLISH)
    pieces = [text[at : at + 4] for at in range(0, len(text), 4)]
    slowest = 0.0
    print(f"\n{'an event, us':34}{'read':>8}{'in all':>8}")
    for name, form in SAID.items():
        operation = name.split()[0]
        sent = [frame(json.dumps(form(piece)).encode()) for piece in pieces]

        def read(operation: str = operation, sent: list[bytes] = sent) -> None:
            texts = stream_texts(operation)
            for block in sent:
                texts.read(block)

        def guard(operation: str = operation, sent: list[bytes] = sent) -> None:
            texts = stream_texts(operation)
            window: StreamWindow[Event] = StreamWindow(patterns, mask)
            for block in sent:
                for event in texts.read(block):
                    for key, is_json in event.opens:
                        window.open(key, json=is_json)
                    for left, new in window.push(event, *event.texts):
                        texts.write(left, new, lambda key: None)
            window.close()

        took = best(read, 3) / len(pieces)
        slowest = max(slowest, took)
        print(f"{name:34}{took:8.2f}{best(guard, 3) / len(pieces):8.2f}")
    messages = [{"role": ("user", "assistant")[n % 2], "content": ENGLISH[: 40 + n]} for n in range(40)]
    fields = {"model": b'"m"', "messages": json.dumps(messages, separators=(",", ":")).encode()}
    raw = {name: msgspec.Raw(value) for name, value in fields.items()}
    print(f"{'a chat request, 40 messages, us':34}{best(lambda: request_texts('chat', raw), 20):8.1f}")
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    answer = json.dumps({"id": "c", "model": "m", "choices": [choice]}, separators=(",", ":")).encode()
    print(f"{'a chat answer of 4 KB, us':34}{best(lambda: answer_texts('chat', answer), 50):8.1f}")
    return slowest


def main() -> int:
    """Prints all of it."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--gate", action="store_true", help="exit status 1 when a promise is missed")
    asked = arguments.parse_args()
    gc.disable()
    sets: dict[str, PatternSet] = {}
    for name, wanted in (("20 names", TWENTY), ("all", ("pii", "secrets"))):
        began = time.perf_counter()
        sets[name] = PatternSet(named(wanted))
        print(f"{name}: {len(sets[name].rules)} patterns, made in {(time.perf_counter() - began) * 1e3:.0f} ms")
    scan, (chunk, hard), read = scans(sets), streams(sets), events(sets["20 names"])
    chunk = max(chunk, taps(next(iter(sets.values()))))
    print(f"\n20 patterns on 4 KB: {scan:.1f} us (promised {SCAN:.0f}); a chunk: {chunk:.2f} us (promised {CHUNK:.0f})")
    print(f"an adversarial chunk: {hard:.2f} us (promised {CHUNK:.0f})")
    print(f"the text of an event: {read:.2f} us (promised {READ:.0f})")
    return int(asked.gate and (scan > SCAN or max(chunk, hard) > CHUNK or read > READ))


if __name__ == "__main__":
    sys.exit(main())
