"""What an agent run may use up: calls, tools, tokens, money, calls at once; and the same call again and again.

Rule: a run's caps are a party of the admission, so that what a call takes from its run is taken with everything else,
or not at all. A call that names no run takes nothing here. What a run has spent counts as long as it may live, and goes
by itself then.
"""

from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from math import ceil
from typing import Any, Final

import msgspec

from tollhouse.core.call import Call, ModelCall, ToolCall, Usage
from tollhouse.core.errors import Failure
from tollhouse.core.http import Ending
from tollhouse.core.reply import Reply
from tollhouse.policies.admission import Taking, joined
from tollhouse.policies.base import Kind, Layer, Parts
from tollhouse.policies.quotes import spent_of, worth
from tollhouse.policies.runs import RunsSpec, run_refusal
from tollhouse.store.base import Charge, Draw, Rate, Verdict, life

__all__ = ["RUN_CAPS", "RunCaps", "allowances_of_runs"]

_MOST: Final = 2**53 - 1
_DEEP: Final = 1 << 20  # bytes of arguments that are brought into one form; longer ones are compared as they are

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder(order="sorted").encode

_OF_MODELS = frozenset(("calls", "tokens", "usd"))


class _Cap:
    """One of a run's allowances. unit: calls, tools, tokens, usd or concurrent."""

    fallback = ""
    grace = None

    def __init__(self, unit: str, amount: int, spec: RunsSpec, parts: Parts) -> None:
        self.unit = unit
        self.amount = amount
        self.on_store_failure: str = spec.on_store_failure
        self._life = ceil(spec.life)
        self._name = f"{unit}:run:{self._life}s"
        checks = parts.families.budget_checks
        self._admitted = checks.child(f"run-{unit}", "admitted")
        self._refused = checks.child(f"run-{unit}", "refused")
        self._unasked = checks.child(f"run-{unit}", "unasked")

    def ask(self, call: Call, run: str, taking: Taking) -> None:
        """Raises Failure 429 where a price is not known."""
        unit = self.unit
        if isinstance(call, ModelCall):
            if unit == "tools" or not call.model:
                return
        elif unit in _OF_MODELS or not _is_tool(call):
            return
        if unit == "concurrent":
            taking.draw(self, Draw(self._name, run, 1, self.amount, kept=False))
            return
        amount, sized = (1, None) if unit in ("calls", "tools") else self._amount(call, run, taking)
        window, earlier = life(taking.now, self._life)
        taking.draw(self, Draw(self._name, run, min(amount, _MOST), self.amount, window, earlier), sized)
        if unit == "usd":
            taking.nano = max(taking.nano, amount)

    def _amount(self, call: Call, run: str, taking: Taking) -> tuple[int, Callable[[int], int] | None]:
        """What a call of a model may come to, and what that is with so many tokens of answer, where it may grow."""
        assert isinstance(call, ModelCall)
        quote = taking.quoted(call)
        if self.unit == "usd" and quote.rates is None and not quote.free:
            self._refused.value += 1
            call.context.limit = "run usd"
            raise run_refusal(run, f"may cost so much, and nobody knows the price of the model {call.model!r}")
        output = taking.most if taking.most >= 0 else quote.output
        if output < 0:
            output = taking.likely(call)
            taking.grows = max(taking.grows, output)
        return worth(self.unit, quote, output), partial(worth, self.unit, quote)

    # ---- what came of it
    def drew(self, draw: Draw, used: int, taking: Taking) -> None:
        self._admitted.value += 1

    def unasked(self) -> None:
        self._unasked.value += 1

    def spent(self, usage: Usage | None, cost_nano: int | None, counts: bool) -> int:
        if self.unit == "concurrent":
            return 0
        return spent_of("calls" if self.unit == "tools" else self.unit, usage, cost_nano, counts)

    def fewer(self, call: ModelCall, draw: Draw, verdict: Verdict, taking: Taking) -> bool:
        return False

    def refused(self, call: Call, draw: Draw, verdict: Verdict) -> Failure:
        self._refused.value += 1
        call.context.limit = f"run {self.unit}"
        if self.unit == "concurrent":
            said = f"has as many calls under way as all that it may have at once: {self.amount}"
            return run_refusal(draw.key, said, again=True)
        used = verdict.used[verdict.draw] if len(verdict.used) > verdict.draw >= 0 else self.amount
        left = max(self.amount - used, 0)
        if left and draw.amount > 1:
            said = f"has {self._said(left)} left, and this call may come to {self._said(draw.amount)}"
            return run_refusal(draw.key, f"may use {self._said(self.amount)}: it {said}")
        return run_refusal(draw.key, f"has used up what it may: {self._said(self.amount)}")

    def cut(self, draw: Draw) -> Failure:
        return run_refusal(draw.key, f"has used up what it may, {self._said(self.amount)}, in the middle of the answer")

    def _said(self, amount: int) -> str:
        if self.unit == "usd":
            return f"{amount / 1e9:.6f}".rstrip("0").rstrip(".") + " USD"
        what = {"calls": "call of models", "tools": "call of tools", "tokens": "token"}[self.unit]
        return (
            f"{amount} {what}"
            if amount == 1
            else f"{amount} {what.replace('call', 'calls').replace('token', 'tokens')}"
        )


class _Same:
    """The same, asked again and again: as a rate, since what was asked long ago is no circle."""

    def __init__(self, spec: RunsSpec, parts: Parts) -> None:
        assert spec.same is not None
        self._spec = spec.same
        # Not together: what was never asked before goes round in no circle, however much else is asked.
        self._rate = Rate(f"same:run/{spec.same.window:g}", spec.same.times, spec.same.window, together=False)
        self.on_store_failure: str = spec.on_store_failure
        checks = parts.families.budget_checks
        self._admitted = checks.child("run-same", "admitted")
        self._refused = checks.child("run-same", "refused")
        self._unasked = checks.child("run-same", "unasked")

    def ask(self, call: Call, run: str, taking: Taking) -> None:
        what = _what(call)
        if what is not None:
            taking.charge(self, Charge(self._rate, f"{run}\0{what}", 1))

    def refusal(self, call: Call, charge: Charge, verdict: Verdict, index: int) -> Failure:
        self._refused.value += 1
        call.context.limit = "run same"
        run = charge.key.partition("\0")[0]
        what = f"the tool {call.name!r}" if isinstance(call, ToolCall) else "the model"
        times, seconds = self._spec.times, self._spec.window
        return run_refusal(run, f"goes round in a circle: it has asked {what} the same {times} times in {seconds:g} s")

    def took(self, ahead: float, taking: Taking) -> None:
        self._admitted.value += 1

    def used(self, call: Call, ending: Ending) -> int:
        return -1

    def unasked(self) -> None:
        self._unasked.value += 1


class RunCaps:
    """A party of the admission (`policies.admission.Party`)."""

    quick = None

    def __init__(self, spec: RunsSpec, parts: Parts) -> None:
        amounts = (
            ("calls", spec.calls),
            ("tools", spec.tools),
            ("tokens", spec.tokens),
            ("usd", None if spec.usd is None else round(spec.usd * 1e9)),
            ("concurrent", spec.parallel),
        )
        asked: list[_Cap | _Same] = [_Cap(unit, amount, spec, parts) for unit, amount in amounts if amount is not None]
        if spec.same is not None:
            asked.append(_Same(spec, parts))
        self._asked = tuple(asked)

    def __len__(self) -> int:
        return len(self._asked)

    def ask(self, call: Call, taking: Taking) -> None:
        run = call.context.run_id
        if run:
            for one in self._asked:
                one.ask(call, run, taking)


def allowances_of_runs(spec: RunsSpec) -> dict[str, float]:
    """What runs spend from, with the seconds for which that is kept after a window's start."""
    seconds = ceil(spec.life)
    return {f"{unit}:run:{seconds}s": 2.0 * seconds for unit in ("calls", "tools", "tokens", "usd")}


def _is_tool(call: Call) -> bool:
    return isinstance(call, ToolCall) and call.method == "tools/call"


def _what(call: Call) -> str | None:
    """A digest of what is asked; None for what does not count. Arguments are compared by what they mean."""
    if isinstance(call, ModelCall):
        if not call.body:
            return None
        return blake2b(b"%b\0%b" % (call.operation.encode(), call.body), digest_size=12).hexdigest()
    if not _is_tool(call):
        return None
    assert isinstance(call, ToolCall)
    raw = bytes(call.arguments)
    if 0 < len(raw) <= _DEEP:
        try:
            raw = _encode(_decode(raw))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, TypeError):
            pass  # whoever reads it next refuses it; the same nonsense is the same
    return blake2b(b"%b\0%b\0%b" % (call.server.encode(), call.name.encode(), raw), digest_size=12).hexdigest()


def _build(layers: tuple[Layer, ...], parts: Parts) -> Any:
    caps = RunCaps(layers[-1].spec, parts)
    return caps if len(caps) else None


RUN_CAPS: Kind[Call, Reply] = Kind(
    "runs", frozenset(("top",)), adds=False, build=_build, entrances=frozenset(("llm", "mcp")), joins=joined
)
