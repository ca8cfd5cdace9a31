"""What a translation costs: microseconds per streamed event, and per request and answer, for each pair of APIs.

python -m tests.golden.llm.measure [seconds per figure]

The stream is a text in 500 small pieces, as our own encoders write it, one event a block; cutting it into blocks and
sending it are not in the figure. The request is a conversation with calls side by side and their results, or a plain
one; the answer has a text and two calls, or a text. A figure is the best of five.
"""

import sys
from timeit import Timer
from typing import Any

import msgspec
from tests.golden.llm.apis import APIS
from tests.golden.llm.translations import answers, requests

from tollhouse.wire.llm.codec import Lost
from tollhouse.wire.llm.fold import unfold
from tollhouse.wire.llm.model import Answer, Chat, Choice, Event, Text, TextDelta
from tollhouse.wire.llm.translate import Translation

EVENTS = 500


def cost(action: Any, seconds: float) -> float:
    """Microseconds for one run."""
    timer = Timer(action)
    runs, taken = timer.autorange()
    runs = max(int(runs * seconds / 5 / max(taken, 1e-9)), 1)
    return min(timer.repeat(5, runs)) / runs * 1e6


def stream(api: str) -> list[bytes]:
    """A provider's stream, an event a block."""
    form = APIS[api]
    answer = Answer(api, "id-1", "a-model", [Choice([Text("")])], 1790000000)
    events: list[Event] = []
    for event in unfold(answer):
        events.append(event)
        if type(event).__name__ == "PartBegan":
            events += [TextDelta(0, f" word{n}") for n in range(EVENTS)]
    encoder = form.codec.encoder(Chat(api, "m", [], stream=True, include_usage=True))
    return [block for event in events if (block := encoder.write([event]))] + [encoder.end()]


def per_event(asked: str, asker: str, seconds: float) -> float:
    blocks = stream(asked)
    chat = Chat(asker, "m", [], stream=True)
    translation = Translation(chat, APIS[asker].codec, APIS[asked].codec, 1790000000)
    dialect = APIS[asked].dialect

    def run() -> None:
        read = translation.reader(dialect).read
        for block in blocks:
            read(block)

    return cost(run, seconds) / len(blocks)


def request(asker: str, asked: str, shape: str, seconds: float) -> float:
    fields = msgspec.json.decode(msgspec.json.encode(requests()[shape][asker]), type=dict[str, msgspec.Raw])
    source, target = APIS[asker].codec, APIS[asked].codec

    def run() -> None:
        chat = source.decode(fields, model="m", stream=False)
        target.encode(chat, Lost(source.quiet), model=APIS[asked].model, max_output=4096)

    return cost(run, seconds)


def answer(asked: str, asker: str, shape: str, seconds: float) -> float:
    body = msgspec.json.encode(answers(asked)[shape]["unary"])
    translation = Translation(Chat(asker, "m", []), APIS[asker].codec, APIS[asked].codec, 1790000000)
    return cost(lambda: translation.answer(body), seconds)


def main(seconds: float) -> None:
    print(f"{'asker -> asked':<24}{'event':>9}{'request':>9}{'answer':>9}{'plain request':>15}{'plain answer':>14}")
    for asker in APIS:
        for asked in APIS:
            if asked != asker:
                figures = (
                    per_event(asked, asker, seconds),
                    request(asker, asked, "calls side by side", seconds),
                    answer(asked, asker, "a text and two calls", seconds),
                    request(asker, asked, "plain", seconds),
                    answer(asked, asker, "a text", seconds),
                )
                line = "{:>9.1f}{:>9.1f}{:>9.1f}{:>15.1f}{:>14.1f}".format(*figures)
                print(f"{asker + ' -> ' + asked:<24}{line}")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0)
