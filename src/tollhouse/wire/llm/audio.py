"""OpenAI audio: `POST /audio/speech` with a JSON object, answered with sound; `/audio/transcriptions` and
`/audio/translations` with a form, answered with JSON, text or subtitles.

Sound is passed on whole, not while it is made; who wants it early asks for `stream_format: sse`. A transcription tells
tokens, or the seconds of sound, which are no tokens. Spoken text of which no tokens are told has four for three bytes:
speech has about 15 letters in a second, and 20 tokens.
"""

from collections.abc import Mapping

import msgspec

from tollhouse.wire.llm.dialect import Asked
from tollhouse.wire.llm.forms import FormDialect
from tollhouse.wire.llm.media import MediaDialect, MediaReader
from tollhouse.wire.llm.tokens import of_text

__all__ = ["Speech", "Transcriptions", "Translations"]

_SSE = b'"sse"'


class Speech(MediaDialect):
    """`POST /v1/audio/speech`."""

    __slots__ = ()

    operation = "speech"
    path = b"/audio/speech"
    opaque_answer = True

    def decode(self, body: bytes, *, model: str | None = None, stream: bool | None = None) -> Asked:
        asked = super().decode(body, model=model, stream=stream)
        if stream is None:
            asked.stream = bytes(asked.fields.get("stream_format") or msgspec.Raw()) == _SSE
        return asked

    def reader(self, *, strip: bool) -> MediaReader:
        return MediaReader()

    def unsaid(self, fields: Mapping[str, msgspec.Raw], answer: bytes) -> int:
        return len(bytes(fields.get("input", b""))) * 4 // 3


class Transcriptions(FormDialect):
    """`POST /v1/audio/transcriptions`."""

    __slots__ = ()

    operation = "transcriptions"
    path = b"/audio/transcriptions"
    opaque_answer = True

    def unsaid(self, fields: Mapping[str, msgspec.Raw], answer: bytes) -> int:
        return of_text(len(answer))


class Translations(Transcriptions):
    """`POST /v1/audio/translations`."""

    __slots__ = ()

    operation = "translations"
    path = b"/audio/translations"
    streams = False
