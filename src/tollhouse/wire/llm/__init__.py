"""Language model dialects: how each API asks, answers, streams and fails. `CHAT`, `EMBEDDINGS` and `MESSAGES` have no
state and serve every request."""

from tollhouse.wire.llm.anthropic import AnthropicMessages
from tollhouse.wire.llm.embeddings import Embeddings
from tollhouse.wire.llm.openai_chat import OpenAIChat

__all__ = ["CHAT", "EMBEDDINGS", "MESSAGES"]

CHAT = OpenAIChat()
EMBEDDINGS = Embeddings()
MESSAGES = AnthropicMessages()
