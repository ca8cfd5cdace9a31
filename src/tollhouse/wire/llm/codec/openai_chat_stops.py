"""Why an OpenAI chat completion ends, in its words and in ours; for whole answers and streams."""

from tollhouse.wire.llm.model import Stop

__all__ = ["FINISH", "stop_of"]

_STOPS: dict[str, Stop] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}

FINISH: dict[Stop, str] = {
    "stop": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "context_window": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
    "refusal": "content_filter",
    "pause": "stop",
    "error": "stop",
}
"""Ours to `finish_reason`."""


def stop_of(reason: str, *, calls: bool, refused: bool) -> Stop:
    """`finish_reason` as ours. calls, refused: what the turn holds."""
    stop = _STOPS.get(reason, "stop")
    if stop != "stop":
        return stop
    return "tool_calls" if calls else "refusal" if refused else "stop"
