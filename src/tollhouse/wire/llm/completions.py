"""OpenAI's older completions: `POST /completions`, an object or a stream of `text_completion` chunks.

Everything but the request's `prompt` and the `text` of a choice is as in chat completions.
"""

import msgspec

from tollhouse.wire.llm.openai_chat import OpenAIChat
from tollhouse.wire.llm.system import System, around_prompt
from tollhouse.wire.members import Names

__all__ = ["Completions"]

Raw = msgspec.Raw


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

    def with_system(self, fields: dict[str, Raw], system: System) -> None:
        fields["prompt"] = around_prompt(fields.get("prompt"), system)
