"""What the suite looks at: the corpus, and what the codecs make of it.

requests/*.yaml: shapes of requests, each in the documented form of the APIs that can say it. answers/<api>.yaml: what a
provider of the API answers, whole and as a stream. expected/: what becomes of them for every ordered pair of APIs.
"""

import json
from pathlib import Path
from typing import Any

import msgspec
import yaml
from tests.golden.llm.apis import APIS, Api

from tollhouse.core.errors import Failure
from tollhouse.wire.llm.codec import Lost
from tollhouse.wire.llm.model import Chat
from tollhouse.wire.llm.translate import Translation

__all__ = [
    "EXPECTED",
    "NOW",
    "PAIRS",
    "answers",
    "decoded",
    "expected",
    "requests",
    "translated_answers",
    "translated_requests",
    "written",
]

HERE = Path(__file__).parent
EXPECTED = HERE / "expected"
PAIRS = [(a, b) for a in APIS for b in APIS if a != b]
NOW = 1790000001
_MAX_OUTPUT = 4096
_WIDTH = 118


def requests() -> dict[str, dict[str, Any]]:
    """Shape, API: the body."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((HERE / "requests").glob("*.yaml")):
        for shape, forms in yaml.safe_load(path.read_text("utf-8")).items():
            assert shape not in found, shape
            assert forms.keys() <= APIS.keys(), shape
            found[shape] = forms
    return found


def answers(api: str) -> dict[str, dict[str, Any]]:
    """Shape: {"unary": the body, "stream": the events}, of a provider of the API."""
    found: dict[str, dict[str, Any]] = yaml.safe_load((HERE / "answers" / f"{api}.yaml").read_text("utf-8"))
    return found


def decoded(api: Api, body: dict[str, Any]) -> Chat:
    fields = msgspec.json.decode(msgspec.json.encode(body), type=dict[str, msgspec.Raw])
    return api.codec.decode(fields, model="asked", stream=body.get("stream", False))


def translated_requests(asker: str, asked: str) -> dict[str, Any]:
    """What becomes of each request of a caller's API at a provider of another: the body, and what is lost."""
    found = {}
    for shape, forms in requests().items():
        if asker not in forms:
            continue
        lost = Lost(APIS[asker].codec.quiet)
        try:
            chat = decoded(APIS[asker], forms[asker])
            fields = APIS[asked].codec.encode(chat, lost, model=APIS[asked].model, max_output=_MAX_OUTPUT)
        except Failure as failure:
            found[shape] = {"refused": failure.message}
            continue
        found[shape] = {"body": msgspec.json.decode(msgspec.json.encode(fields)), "lost": lost.places}
    return found


def translated_answers(asked: str, asker: str) -> dict[str, Any]:
    """What becomes of each answer of a provider's API for a caller of another, whole and as a stream."""
    found = {}
    chat = Chat(asker, "asked", [], include_usage=True)
    for shape, forms in answers(asked).items():
        translation = Translation(chat, APIS[asker].codec, APIS[asked].codec, NOW, id="req-1")
        whole: Any
        try:
            whole = msgspec.json.decode(translation.answer(msgspec.json.encode(forms["unary"]))[0])
        except Failure as failure:
            whole = {"refused": failure.message}
        reader = translation.reader(APIS[asked].dialect)
        out = b"".join(reader.read(APIS[asked].framed(event)) for event in forms["stream"])
        stream = APIS[asker].told(out)
        if reader.failure is not None:
            stream.append({"refused": reader.failure.message})
        assert reader.finished or reader.failure is not None, shape
        found[shape] = {"unary": whole, "stream": stream}
    return found


def expected(kind: str, source: str, target: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((EXPECTED / kind / f"{source}_to_{target}.json").read_text("utf-8"))
    return found


def written(value: Any, indent: int = 0) -> str:
    """JSON to be read: what fits stands on one line."""
    line = json.dumps(value, ensure_ascii=False)
    if len(line) + indent <= _WIDTH or not isinstance(value, (dict, list)) or not value:
        return line.replace("\u2028", "\\u2028").replace("\u202e", "\\u202e")
    space = " " * (indent + 2)
    if isinstance(value, dict):
        inner = [
            f"{space}{json.dumps(name, ensure_ascii=False)}: {written(v, indent + 2)}" for name, v in value.items()
        ]
        return "{\n" + ",\n".join(inner) + "\n" + " " * indent + "}"
    return "[\n" + ",\n".join(space + written(v, indent + 2) for v in value) + "\n" + " " * indent + "]"
