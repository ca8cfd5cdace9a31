"""OpenAI's older completions: `POST /completions`, an object or a stream of `text_completion` chunks.

Everything but the request's `prompt` and the `text` of a choice is as in chat completions. A request may have several
prompts, each of which is answered `n` times, and `best_of` times where only the best of them is shown: all are paid.
"""

from collections.abc import Mapping

import msgspec

from tollhouse.core.depth import UNREADABLE
from tollhouse.wire.llm.dialect import Dialect
from tollhouse.wire.llm.openai_chat import OpenAIChat, choices
from tollhouse.wire.llm.system import System, around_prompt
from tollhouse.wire.members import Names

__all__ = ["Completions"]

Raw = msgspec.Raw

_list = msgspec.json.Decoder(list[Raw]).decode


class Completions(OpenAIChat):
    """`POST /v1/completions`."""

    __slots__ = ()

    operation = "completions"
    path = b"/completions"
    output_bounds = ("max_tokens",)
    acted_on = Names(
        "model", "prompt", "suffix", "stream", "stream_options", "n", "max_tokens",
        usual=("temperature", "top_p", "user", "stop", "seed", "echo", "logprobs", "best_of"),
    )  # fmt: skip

    def output_bound(self, fields: Mapping[str, Raw]) -> int:
        each = max([choices(fields[name]) for name in ("n", "best_of") if name in fields], default=1)
        return Dialect.output_bound(self, fields) * each * _prompts(fields.get("prompt"))

    def with_system(self, fields: dict[str, Raw], system: System) -> None:
        fields["prompt"] = around_prompt(fields.get("prompt"), system)


def _prompts(raw: Raw | None) -> int:
    """How many there are: a text or a list of tokens is one."""
    if raw is None or bytes(raw)[:1] != b"[":
        return 1
    try:
        several = _list(raw)
    except UNREADABLE:
        return 1
    return len(several) if several and bytes(several[0])[:1] in (b'"', b"[") else 1
