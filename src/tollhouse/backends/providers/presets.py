"""Servers that speak OpenAI's API, by name: where they are, and where they differ from it.

Rule: a preset only fills in what configuration leaves out; every value can be set beside it.
"""

from typing import Literal, NamedTuple

import msgspec

from tollhouse.backends.provider import Continuation

__all__ = ["PRESETS", "Preset", "PresetName"]

Raw = msgspec.Raw

_AS_IT_IS = Continuation()
_TEMPLATED = Continuation(fields={"continue_final_message": Raw(b"true"), "add_generation_prompt": Raw(b"false")})
_FLAGGED = Continuation(fields={"continue_final_message": Raw(b"true")})
_PREFIX = Continuation(message={"prefix": Raw(b"true")}, echoes=True)

PresetName = Literal[
    "cerebras", "cohere", "deepinfra", "deepseek", "fireworks", "groq", "huggingface", "jina", "llamacpp", "lmstudio",
    "mistral", "nvidia", "ollama", "openrouter", "perplexity", "sglang", "together", "vllm", "voyage", "xai",
]  # fmt: skip


class Preset(NamedTuple):
    """base_url: up to and with the version. keyed: answers nobody without a key. bound: its field for the bound on
    output tokens. responses: it speaks that API too. stream_usage: it takes `stream_options`. rerank: the path of that
    API, where it is not below base_url. continuation: how it is told to go on from an assistant's message. continues:
    it is known to do so at that base_url."""

    base_url: str
    keyed: bool = True
    bound: str = "max_tokens"
    responses: bool = False
    stream_usage: bool = True
    rerank: bytes = b""
    continuation: Continuation = _AS_IT_IS
    continues: bool = False


PRESETS: dict[str, Preset] = {
    "cerebras": Preset("https://api.cerebras.ai/v1", bound="max_completion_tokens"),
    "cohere": Preset("https://api.cohere.ai/compatibility/v1", rerank=b"/v2/rerank"),
    "deepinfra": Preset("https://api.deepinfra.com/v1/openai"),
    "deepseek": Preset("https://api.deepseek.com/v1", continuation=_PREFIX),  # it does below /beta alone
    "fireworks": Preset("https://api.fireworks.ai/inference/v1", responses=True),
    "groq": Preset("https://api.groq.com/openai/v1", bound="max_completion_tokens", responses=True),
    "huggingface": Preset("https://router.huggingface.co/v1"),
    "jina": Preset("https://api.jina.ai/v1"),
    "llamacpp": Preset("http://127.0.0.1:8080/v1", keyed=False),
    "lmstudio": Preset("http://127.0.0.1:1234/v1", keyed=False),
    "mistral": Preset(  # tells the usage always, and refuses the option
        "https://api.mistral.ai/v1", stream_usage=False, continuation=_PREFIX, continues=True
    ),
    "nvidia": Preset("https://integrate.api.nvidia.com/v1"),
    "ollama": Preset("http://127.0.0.1:11434/v1", keyed=False),
    "openrouter": Preset("https://openrouter.ai/api/v1"),
    "perplexity": Preset("https://api.perplexity.ai", stream_usage=False),
    "sglang": Preset("http://127.0.0.1:30000/v1", keyed=False, continuation=_FLAGGED),
    "together": Preset("https://api.together.xyz/v1"),
    "vllm": Preset("http://127.0.0.1:8000/v1", keyed=False, responses=True, continuation=_TEMPLATED),
    "voyage": Preset("https://api.voyageai.com/v1"),
    "xai": Preset("https://api.x.ai/v1", bound="max_completion_tokens", responses=True),
}
