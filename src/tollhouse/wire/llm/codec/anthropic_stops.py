"""Why an Anthropic message ends, in its words and in ours; for whole answers and streams."""

from tollhouse.wire.llm.model import Stop

__all__ = ["REASONS", "STOPS"]

STOPS: dict[str, Stop] = {
    "end_turn": "stop",
    "max_tokens": "length",
    "stop_sequence": "stop_sequence",
    "tool_use": "tool_calls",
    "pause_turn": "pause",
    "refusal": "refusal",
    "model_context_window_exceeded": "context_window",
}
"""`stop_reason` to ours."""

REASONS: dict[Stop, str] = {
    **{ours: theirs for theirs, ours in STOPS.items()},
    "content_filter": "refusal",
    "error": "end_turn",
}
"""Ours to `stop_reason`."""
