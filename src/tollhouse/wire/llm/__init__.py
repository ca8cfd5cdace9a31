"""Language model APIs: how each asks, answers, streams and fails. A dialect or codec has no state and serves every
request; a new API is one file for each, and one line here."""

from tollhouse.wire.llm.anthropic import AnthropicMessages
from tollhouse.wire.llm.audio import Speech, Transcriptions, Translations
from tollhouse.wire.llm.codec import Codec
from tollhouse.wire.llm.codec.anthropic import AnthropicCodec
from tollhouse.wire.llm.codec.converse import ConverseCodec
from tollhouse.wire.llm.codec.embeddings import OpenAIEmbeddingsCodec
from tollhouse.wire.llm.codec.gemini import GeminiCodec
from tollhouse.wire.llm.codec.gemini_embeddings import GeminiBatchEmbedCodec, GeminiEmbedCodec
from tollhouse.wire.llm.codec.openai_chat import OpenAIChatCodec
from tollhouse.wire.llm.codec.openai_responses import OpenAIResponsesCodec
from tollhouse.wire.llm.completions import Completions
from tollhouse.wire.llm.converse import BedrockConverse
from tollhouse.wire.llm.count_tokens import CountTokens, GeminiCountTokens
from tollhouse.wire.llm.embeddings import Embeddings
from tollhouse.wire.llm.gemini import GeminiBatchEmbed, GeminiEmbed, GeminiGenerate
from tollhouse.wire.llm.images import ImageEdits, Images, ImageVariations
from tollhouse.wire.llm.moderations import Moderations
from tollhouse.wire.llm.openai_chat import OpenAIChat
from tollhouse.wire.llm.openai_responses import OpenAIResponses
from tollhouse.wire.llm.realtime import Realtime
from tollhouse.wire.llm.rerank import Rerank

__all__ = [
    "CHAT",
    "CODECS",
    "COMPLETIONS",
    "CONVERSE",
    "COUNT_TOKENS",
    "EMBEDDINGS",
    "GEMINI",
    "GENERATE",
    "IMAGES",
    "IMAGE_EDITS",
    "IMAGE_VARIATIONS",
    "MESSAGES",
    "MODERATIONS",
    "OPENAI_OTHERS",
    "REALTIME",
    "RERANK",
    "RESPONSES",
    "SPEECH",
    "TRANSCRIPTIONS",
    "TRANSLATIONS",
]

CHAT = OpenAIChat()
RESPONSES = OpenAIResponses()
MESSAGES = AnthropicMessages()
GENERATE = GeminiGenerate()
CONVERSE = BedrockConverse()
EMBEDDINGS = Embeddings()
COUNT_TOKENS = CountTokens()
COMPLETIONS = Completions()
MODERATIONS = Moderations()
IMAGES = Images()
IMAGE_EDITS = ImageEdits()
IMAGE_VARIATIONS = ImageVariations()
SPEECH = Speech()
TRANSCRIPTIONS = Transcriptions()
TRANSLATIONS = Translations()
RERANK = Rerank()
REALTIME = Realtime()

GEMINI = (GENERATE, GeminiBatchEmbed(), GeminiEmbed(), GeminiCountTokens())
"""What a model's path can end in there. A batch stands before what embeds one text: it can be asked for either."""

OPENAI_OTHERS = (
    EMBEDDINGS, COMPLETIONS, MODERATIONS, IMAGES, IMAGE_EDITS, IMAGE_VARIATIONS, SPEECH, TRANSCRIPTIONS, TRANSLATIONS,
    RERANK,
)  # fmt: skip
"""What servers of OpenAI's API may know beside chat and responses; one that does not says so itself."""

CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        OpenAIChatCodec(), OpenAIResponsesCodec(), AnthropicCodec(), GeminiCodec(), ConverseCodec(),
        OpenAIEmbeddingsCodec(), GeminiBatchEmbedCodec(), GeminiEmbedCodec(),
    )
}  # fmt: skip
"""By the operation of the dialect whose requests they read. Any two of one kind make a translation."""
