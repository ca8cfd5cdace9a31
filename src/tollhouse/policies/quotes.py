"""What a call may cost, before anybody has answered it: bounds to hold, and estimates.

Rule: a bound is never below what a provider can charge for what is asked: a token is at least a byte of the body, the
answer has at most the tokens that the caller allows, and every token is taken at the dearest rate that it may have at
any of the model's targets. What no bound is known for (pictures behind a URL, a conversation that the provider keeps,
what the provider's own tools read, an answer without a limit) is estimated, and the quote says so.
"""

import re
from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic, time
from typing import Final, NamedTuple

import msgspec
from msgspec import Struct

from tollhouse.core.call import Context, ModelCall, Usage
from tollhouse.core.depth import UNREADABLE
from tollhouse.ledger.prices import Prices
from tollhouse.ledger.rates import Rates
from tollhouse.wire.llm.tokens import DEFAULT_OUTPUT, MOST_OUTPUT, PICTURE
from tollhouse.wire.llm.usage import tier_of

__all__ = [
    "NO_CHANGES",
    "Asked",
    "Changes",
    "Quote",
    "Quotes",
    "can_shorten",
    "output_of",
    "several_of",
    "shorten",
    "spent_of",
    "tier_asked",
    "worth",
]

_NANO = 1_000_000  # femto-dollars in a nano-dollar
_FRAME = 64  # tokens that providers put around a prompt; messages have frames in JSON that are longer
_EXPLAINED = 512  # of the text that explains tools to a model
_ONE = msgspec.Raw(b"1")
_TOOLS = ("tools", "functions", "toolConfig")
_KEPT_SECONDS = 60.0  # up to a whole minute, at which prices change
_AHEAD = 300.0  # seconds in which a call may end, at the price of then
_KNOWN = 10_000
_SAMPLES = 200
_INLINE = re.compile(
    rb'"(?:url|image_url|file_data|data|bytes|inputImage|bytesBase64Encoded)"\s*:\s*'
    rb'"(?:data:[A-Za-z0-9/+.;=_-]{1,128},)?[A-Za-z0-9+/_-]{2048,}={0,2}"'
)
"""A file in a request, in a member for files. Letters without end within a text are text, each perhaps a token."""
_DEAREST_PICTURE = 4 * PICTURE  # of one that is sent, or pointed to
_POINTERS = (b'"image_url"', b'"input_image"', b'"file_id"', b'"input_file"', b'"fileData"', b'"url"')
_CACHES = (b'"cache_control"', b'"cachePoint"')
_SOUND = (b'"input_audio"', b'"audio"', b"audio/", b'"AUDIO"')
_SOUNDS = frozenset(("speech", "transcriptions", "translations"))
_COUNTING = frozenset(("count_tokens", "count"))
_EXPLICIT = frozenset(("messages", "converse", "generate"))
"""APIs in which a caller says what goes into a provider's cache; of the others the provider decides."""
_ELSEWHERE = (
    "previous_response_id", "conversation", "cachedContent", "cached_content", "container", "mcp_servers",
    "web_search_options", "search_parameters", "plugins",
)  # fmt: skip
_READING = re.compile(
    rb'"(?:web_?(?:search|fetch)|code_?(?:execution|interpreter)|file_?search|google_?(?:search|maps)|url_?context|'
    rb"enterprise_?web|mcp|image_generation|tool_search|browser_search|x_search|collections_search|retrieval|systemtool)"
)
"""Tools that the provider runs, in lower case: to ignore it costs three times as much. What they find is part of the
prompt, and no body has it."""
_SEARCHERS = re.compile(r"sonar|search|research|compound", re.IGNORECASE)
"""In the names of models that look for things without being told to."""


class Asked(NamedTuple):
    """One target of a model: a configured provider, and the name it is asked for; `*` stands for what the `*` of the
    model's own name matched, "" for the whole name."""

    provider: str
    model: str


class Changes(NamedTuple):
    """What transforms may make of a model's requests. size: bytes that they may add. output: tokens of answer that they
    may allow, -1 for no bound, 0 for what they leave alone. tiers: service tiers that they may ask for."""

    size: int = 0
    output: int = 0
    tiers: tuple[str, ...] = ()


NO_CHANGES: Final = Changes()


class Quote(Struct, gc=False):
    """input, estimate: tokens of the prompt, at most and likely. output: tokens that the caller allows, -1 for no
    bound. open: more may come to the prompt than is known here. rates: nano-dollars a million tokens of prompt and of
    answer, and for the call itself, at the dearest target; None where the price of one is not known."""

    input: int
    estimate: int
    output: int
    open: bool
    rates: tuple[int, int, int] | None

    @property
    def free(self) -> bool:
        return self.rates == (0, 0, 0)

    def most(self) -> tuple[int, int]:
        """Tokens that prompt and answer can have at all; where nothing bounds them, those of the largest there are."""
        prompt = max(self.input, MOST_OUTPUT) if self.open else self.input
        return prompt, self.output if self.output >= 0 else MOST_OUTPUT

    def cost(self, input: int, output: int) -> int:
        """Nano-dollars of so many tokens, rounded up; 0 where no price is known."""
        if self.rates is None:
            return 0
        prompt, answer, call = self.rates
        return -(-(input * prompt + output * answer + call) // _NANO)


def worth(unit: str, quote: Quote, output: int) -> int:
    """What a call of a model can come to. unit: usd (nano-dollars), tokens, input_tokens, output_tokens. output: tokens
    of its answer, at most."""
    match unit:
        case "usd":
            return quote.cost(quote.input, output)
        case "tokens":
            return quote.input + output
        case "input_tokens":
            return quote.input
        case _:
            return output


def spent_of(unit: str, usage: Usage | None, cost_nano: int | None, counts: bool) -> int:
    """What a call came to, by its record. unit: as of `worth`, or calls. counts: it is one of the calls that count."""
    if unit == "calls":
        return 1 if counts else 0
    if unit == "usd":
        return max(cost_nano or 0, 0)
    if usage is None:
        return 0
    prompt = usage.input + usage.cache_read + usage.cache_write
    amount = prompt if unit == "input_tokens" else usage.output if unit == "output_tokens" else prompt + usage.output
    return max(amount, 0)


class _Model:
    """A configured model. searches: it may look for things by itself. lengths, order: how long its answers were, of
    late, sorted and in their order."""

    __slots__ = ("after", "before", "changes", "factor", "lengths", "order", "searches", "targets")

    def __init__(self, name: str, targets: Sequence[Asked], factor: int, changes: Changes = NO_CHANGES) -> None:
        self.before, _, self.after = name.partition("*")
        self.targets = tuple(targets)
        self.factor = factor
        self.changes = changes
        self.searches = any(_SEARCHERS.search(target.model or name) for target in targets)
        self.lengths: list[int] = []
        self.order: deque[int] = deque()

    def likely(self) -> int:
        lengths = self.lengths
        return lengths[int(len(lengths) * 0.95)] if len(lengths) >= 20 else DEFAULT_OUTPUT

    def note(self, output: int) -> None:
        lengths, order = self.lengths, self.order
        insort(lengths, output)
        order.append(output)
        if len(order) > _SAMPLES:
            lengths.remove(order.popleft())


class Quotes:
    """Of one configuration. models: by configured name the targets, how many of them may be asked for one call at once,
    and what becomes of its requests before they are sent; asked for each when it is first called. now: unix seconds."""

    def __init__(
        self,
        prices: Prices | None,
        models: Callable[[str], tuple[Sequence[Asked], int, Changes] | None],
        now: Callable[[], float] = time,
    ) -> None:
        self._prices = prices
        self._find_model = models
        self._models: dict[str, _Model] = {}
        self._now = now
        self._known: dict[tuple[str, str, str, _Kinds], tuple[float, tuple[int, int, int] | None]] = {}

    def of(self, call: ModelCall) -> Quote:
        body = call.body
        dialect = call.dialect
        if dialect is None:  # a call of no request: an answer in a session, which says itself what it takes
            estimate = call.estimate
            rates = self._rates(call, "", _Kinds(False, False, True, True, True))
            if rates is not None:  # how much of it is the answer nobody has said
                rates = max(rates[:2]), rates[1], rates[2]
            return Quote(estimate, estimate, 0, True, rates)
        if not call.estimate:  # opening a session, counting tokens: it uses none itself
            free = call.operation in _COUNTING
            return Quote(0, 0, 0, False, (0, 0, 0) if free else self._rates(call, "", _NO_KINDS))
        output = allowed = output_of(call)
        likely = output if output >= 0 else dialect.output_bound(call.fields)
        estimate = max(call.estimate - likely, 0)
        size, pictures = len(body), 0
        if size > 4096:
            for match in _INLINE.finditer(body):
                size -= match.end() - match.start()
                pictures += 1
        pictures += sum(map(body.count, _POINTERS))
        fields, operation = call.fields, call.operation
        frame = _FRAME
        opened = pictures > 0 or any(name in fields for name in _ELSEWHERE) or _is_object(fields.get("prompt"))
        for name in _TOOLS:
            if name in fields:
                frame = _FRAME + _EXPLAINED
                opened = opened or _READING.search(bytes(fields[name]).lower()) is not None
        model = self._model(call.label)
        if model is not None:
            changes = model.changes
            size += changes.size
            if changes.output and output > 0:
                allowed = max(output, changes.output * several_of(call)) if changes.output > 0 else -1
            opened = opened or model.searches or _SEARCHERS.search(call.model) is not None
        if allowed > 0 and "prediction" in fields:
            allowed += len(bytes(fields["prediction"]))  # what of it is not in the answer is paid as if it were
        most = max(size + frame + pictures * _DEAREST_PICTURE, estimate)
        told = any(word in body for word in _CACHES)
        sound = operation in _SOUNDS or any(word in body for word in _SOUND)
        kinds = _Kinds(told, told or operation not in _EXPLICIT, sound, pictures > 0 or body[:2] == b"--", output != 0)
        return Quote(most, estimate, allowed, opened, self._rates(call, tier_asked(call), kinds))

    def at_usual_price(self, call: ModelCall, quote: Quote) -> Quote:
        """The same, as if the call's caller had named no service tier."""
        return msgspec.structs.replace(quote, rates=self._rates(call, "", _TEXT))

    def likely(self, label: str) -> int:
        """Tokens that 19 of 20 answers of that model had at most, of late."""
        model = self._model(label)
        return model.likely() if model is not None else DEFAULT_OUTPUT

    def note(self, label: str, output: int) -> None:
        """An answer had so many tokens."""
        model = self._model(label)
        if model is not None and output > 0:
            model.note(output)

    def cost(self, context: Context) -> int | None:
        """Nano-dollars of what was used; None while nothing was, or no price is known."""
        return None if self._prices is None else self._prices.cost(context)

    def _model(self, label: str) -> _Model | None:
        model = self._models.get(label)
        if model is None:
            found = self._find_model(label)
            if found is not None:
                model = self._models[label] = _Model(label, *found)
        return model

    def _rates(self, call: ModelCall, tier: str, kinds: "_Kinds") -> tuple[int, int, int] | None:
        key = (call.label, call.model, tier, kinds)
        known = self._known.get(key)
        now = monotonic()
        if known is not None and known[0] > now:
            return known[1]
        found = self._find(call.label, call.model, tier, kinds)
        if len(self._known) >= _KNOWN:
            self._known.clear()
        if len(call.model) <= 256:
            self._known[key] = (now + _KEPT_SECONDS - self._now() % _KEPT_SECONDS, found)
        return found

    def _find(self, label: str, name: str, tier: str, kinds: "_Kinds") -> tuple[int, int, int] | None:
        model = self._model(label)
        prices = self._prices
        if model is None or prices is None:
            return None
        matched = name[len(model.before) : len(name) - len(model.after)]
        dearest = (0, 0, 0)
        for target in model.targets:
            asked = (target.model or name).replace("*", matched)
            at = self._now()
            for one in ("", tier) if tier else ("",):
                # A tier that has no price is not free: who names it must have one.
                rates = prices.rates(target.provider, asked, at, one)
                if rates is None or (kinds.answers and not rates.has_output):
                    return None
                dearest = _dearer(dearest, rates, kinds)
                if (soon := prices.rates(target.provider, asked, at + _AHEAD, one)) is not None:
                    dearest = _dearer(dearest, soon, kinds)
            for one in model.changes.tiers:
                if (rates := prices.rates(target.provider, asked, at, one)) is not None:
                    dearest = _dearer(dearest, rates, kinds)
        prompt, answer, once = dearest
        return prompt * model.factor, answer * model.factor, once * model.factor


class _Kinds(NamedTuple):
    """Which kinds of tokens a call may have besides text. told: its caller has a part of the prompt kept. kept: the
    provider may do so. sound: in either direction. pictures: in the prompt; in an answer a model either has them or
    not. answers: tokens of answer at all."""

    told: bool
    kept: bool
    sound: bool
    pictures: bool
    answers: bool


_NO_KINDS = _Kinds(False, False, False, False, False)
_TEXT = _Kinds(False, False, False, False, True)


def _is_object(raw: msgspec.Raw | None) -> bool:
    return raw is not None and bytes(raw)[:1] == b"{"


def _dearer(most: tuple[int, int, int], rates: Rates, kinds: _Kinds) -> tuple[int, int, int]:
    prompt, answer, once = most
    for one in (rates, *(tier for _, tier in rates.tiers)):
        each = max(one.input, one.cache_read)
        if kinds.kept:
            each = max(each, one.cache_write + (max(one.cache_write_1h_more, 0) if kinds.told else 0))
        if kinds.pictures:
            each = max(each, one.input + max(one.image_input_more, 0))
        said = one.output + max(one.reasoning_more, one.image_output_more, 0)
        if kinds.sound:
            each = max(each, one.input + max(one.audio_input_more, 0))
            said = max(said, one.output + max(one.audio_output_more, 0))
        prompt, answer, once = max(prompt, each), max(answer, said), max(once, one.request)
    return prompt, answer, once


def tier_asked(call: ModelCall) -> str:
    """The service tier that a call's caller asks for, as `Usage.tier` has it; "" for the usual one, or none."""
    fields = call.fields
    asked = fields.get("service_tier") or fields.get("serviceTier")
    tier = "" if asked is None else tier_of(asked)
    if tier == "standard_only":
        tier = ""
    if "speed" in fields and call.operation == "messages" and (speed := tier_of(fields["speed"])):
        tier = f"{tier}+{speed}" if tier else speed
    return tier


def output_of(call: ModelCall) -> int:
    """Output tokens that the caller allows, for all answers that he wants; -1 for no bound. What is no number above 0
    bounds nothing (some servers take -1 for endless); of two fields that say it the larger counts, since who knows
    only one of them keeps to that."""
    dialect, fields = call.dialect, call.fields
    if dialect is None:
        return -1
    if names := dialect.output_bounds:
        most = max([_bound(fields.get(name)) for name in names])
        return -1 if most <= 0 else min(most, MOST_OUTPUT) * several_of(call)
    bound: int = dialect.output_bound(fields)
    if bound == 0 or dialect.output_bound({}) == 0:
        return bound
    place = next((name for name in _NESTED if name in fields), "")
    try:
        inner = _object(fields[place]) if place else {}
    except (msgspec.DecodeError, UnicodeDecodeError):
        return -1
    known = max(_bound(inner.get(_NESTED.get(place, ""))), _bound(inner.get("max_output_tokens")))
    return min(bound, MOST_OUTPUT) if known > 0 else -1


def several_of(call: ModelCall) -> int:
    """How many answers are asked for, each of which has the whole bound."""
    dialect, fields = call.dialect, call.fields
    if dialect.output_bounds:
        several: int = dialect.output_bound({**fields, dialect.output_bounds[0]: _ONE})
        return max(several, 1)
    place = next((name for name in _NESTED if name in fields), "")
    try:
        inner = _object(fields[place]) if place else {}
    except UNREADABLE:
        return 1
    return min(max(1, *(_bound(inner.get(name)) for name in ("candidateCount", "candidate_count"))), 8)


def _bound(raw: msgspec.Raw | None) -> int:
    """A bound as a caller has written it; 0 for what is none."""
    told = b"" if raw is None else bytes(raw)
    return int(told) if told.isdigit() and len(told) < 20 else MOST_OUTPUT if told.isdigit() else 0


_NESTED = {
    "generationConfig": "maxOutputTokens",
    "generation_config": "maxOutputTokens",
    "inferenceConfig": "maxTokens",
}
_NEST = {"generate": "generationConfig", "converse": "inferenceConfig"}
_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def can_shorten(call: ModelCall) -> bool:
    """Whether the call's API has a place for a bound of the answer."""
    return call.dialect is not None and (bool(call.dialect.output_bounds) or call.operation in _NEST)


def shorten(call: ModelCall, most: int) -> None:
    """Let all answers of the call together have at most so many tokens, as if its caller had asked for that."""
    dialect, fields = call.dialect, call.fields
    each = most // several_of(call)
    number = msgspec.Raw(b"%d" % max(each, 1))
    if dialect.output_bounds:
        there = [name for name in dialect.output_bounds if name in fields]
        if not there:
            call.bounded = True
            there = [dialect.output_bounds[0]]
        for name in there:
            fields[name] = number
        return
    place = next((name for name in _NESTED if name in fields), _NEST.get(call.operation, ""))
    if place:
        try:
            inner = _object(fields[place]) if place in fields else {}
        except (msgspec.DecodeError, UnicodeDecodeError):
            return  # for the provider to refuse
        inner.pop("max_output_tokens", None)
        inner[_NESTED[place]] = number
        fields[place] = msgspec.Raw(msgspec.json.encode(inner))
