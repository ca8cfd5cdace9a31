"""What Claude models take of thinking and sampling, at Anthropic and at Bedrock alike: the version in a model's name
decides.

Up to 4.5 thought has a budget of tokens, which is a part of the bound on the answer. Since 4.6 the model decides itself
how much it thinks, and effort is a word; since 4.7 it refuses budgets, and everything that steers chance. A name that
does not say its version is taken for an older model.
"""

import re
from typing import Any

from tollhouse.wire.llm.codec import Lost
from tollhouse.wire.llm.codec.effort import budget_of, effort_of
from tollhouse.wire.llm.model import Chat, Reasoning, Thinking, ToolCall, ToolResult

__all__ = ["Thought", "Version", "asked_thinking", "sampling", "version_of", "written_thinking"]

Version = tuple[int, int]
"""Major and minor: (4, 5)."""

_VERSION = re.compile(r"claude-(?:[a-z]+-)*(\d{1,2})(?!\d)(?:[-.](\d{1,2})(?!\d))?")
_UNKNOWN = (0, 0)
_ADAPTIVE = (4, 6)
_WITHOUT_CHANCE = (4, 7)
_THINKS_UNASKED = (5, 0)
_SMALLEST_BUDGET = 1_024
_USUAL_BUDGET = 8_192
_WORDS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "max"}
_FORCED = "reasoning: beside a tool that must be called"
_UNTHOUGHT = "reasoning: the calls that were answered come without the thought before them"


def version_of(model: str) -> Version:
    """Of a Claude model, by any provider's name for it; (0, 0) where that does not say."""
    name = model.lower()
    found = _VERSION.search(name)
    if found is not None:
        return int(found[1]), int(found[2] or 0)
    return _WITHOUT_CHANCE if "claude-mythos" in name else _UNKNOWN


class Thought:
    """form: `thinking`, {} for none. effort: `output_config.effort`, None for none. tokens: how many it may well take
    of the bound on the answer."""

    __slots__ = ("effort", "form", "tokens")

    def __init__(self, form: dict[str, Any] | None = None, effort: str | None = None, tokens: int = 0) -> None:
        self.form: dict[str, Any] = form or {}
        self.effort = effort
        self.tokens = tokens

    @property
    def thinks(self) -> bool:
        return bool(self.form) and self.form["type"] != "disabled"


def asked_thinking(reasoning: Reasoning) -> dict[str, Any]:
    """`thinking` as a caller said it who has that word; {} for none."""
    thinking: dict[str, Any] = {}
    budget = reasoning.budget
    if budget is None:
        return thinking
    if budget == 0:
        thinking["type"] = "disabled"
    elif budget < 0:
        thinking["type"] = "adaptive"
    else:
        thinking = {"type": "enabled", "budget_tokens": budget}
    if reasoning.shown is not None:
        thinking["display"] = "summarized" if reasoning.shown else "omitted"
    return thinking


def written_thinking(chat: Chat, version: Version, lost: Lost) -> Thought:
    """`chat.reasoning`, which another API's caller asked for. What does not fit the bound of the caller gets half of
    it. Not to think at all is said only to those that would."""
    reasoning = chat.reasoning
    if reasoning is None:
        return Thought()
    effort, budget = reasoning.effort, reasoning.budget
    if budget is None:
        if effort is None:
            return Thought()
        budget = budget_of(effort)
        if budget is None:
            lost.add(f"reasoning.effort: {effort}")
            return Thought()
    if budget == 0:
        return Thought({"type": "disabled"} if version == _UNKNOWN or version >= _THINKS_UNASKED else None)
    choice = chat.tool_choice
    if choice is not None and choice.mode == "required":
        lost.add(_FORCED)
        return Thought()
    told = Thought({"type": "adaptive"})
    if version >= _ADAPTIVE:
        if budget > 0:
            told.tokens = budget
            told.effort = _WORDS[effort if effort in _WORDS else effort_of(budget)]
            if told.effort == "xhigh" and version < _WITHOUT_CHANCE:
                told.effort = "high"
    elif budget > 0 or version != _UNKNOWN:
        if _unthought(chat):
            lost.add(_UNTHOUGHT)
            return Thought()
        told.tokens = _within(budget if budget > 0 else _USUAL_BUDGET, chat.max_output, lost)
        told.form = {"type": "enabled", "budget_tokens": told.tokens} if told.tokens else {}
    if reasoning.shown is not None and told.form:
        told.form["display"] = "summarized" if reasoning.shown else "omitted"
    return told


def _unthought(chat: Chat) -> bool:
    """Whether the turn goes on after calls that no proved thought stands before: with a budget that is refused."""
    for message in reversed(chat.messages):
        if message.role == "assistant":
            calls = any(isinstance(part, ToolCall) for part in message.parts)
            first = message.parts[0] if message.parts else None
            return calls and not (isinstance(first, Thinking) and (first.signature or first.sealed))
        if not any(isinstance(part, ToolResult) for part in message.parts):
            return False
    return False


def _within(budget: int, bound: int | None, lost: Lost) -> int:
    """A budget that is large enough and fits; 0 where none does."""
    budget = max(budget, _SMALLEST_BUDGET)
    if bound is None or budget < bound:
        return budget
    if bound <= _SMALLEST_BUDGET:
        lost.add(f"reasoning: a bound of {bound} on the answer leaves no room for thought (1,024 at least)")
        return 0
    return max(bound // 2, _SMALLEST_BUDGET)


def sampling(chat: Chat, version: Version, thinks: bool, lost: Lost) -> dict[str, float | int]:
    """`temperature`, `top_p` and `top_k`, of another API's caller, as far as the model takes them. thinks: it is asked
    to, and then there is no choice of chance either; a default is no wish."""
    told: dict[str, float | int] = {}
    refused = "not taken by this model" if version >= _WITHOUT_CHANCE else "beside thought" if thinks else ""
    for name in ("temperature", "top_p", "top_k"):
        value = getattr(chat, name)
        if value is None:
            continue
        if refused and name == "top_p" and thinks and version < _WITHOUT_CHANCE and 0.95 <= value <= 1:
            told[name] = value
        elif refused:
            if value != 1 or name == "top_k":
                lost.add(f"{name}: {refused}")
        elif name == "temperature" and not 0 <= value <= 1:
            lost.add("temperature: outside of 0 to 1")
        else:
            told[name] = value
    return told
