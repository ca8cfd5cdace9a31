"""Texts of what is asked without being answered in words: embeddings, moderations, rerank, pictures, speech.

Their answers are numbers, or nothing that could be read: they have no texts but for those named here.
"""

from tollhouse.wire.guard.llm import gemini
from tollhouse.wire.guard.llm.forms import SKIP, Link, Opaque, Text
from tollhouse.wire.guard.llm.objects import Choice, Each, Object, Tagged

__all__ = [
           "COUNT",
           "EMBED",
           "EMBEDDINGS",
           "EMBED_BATCH",
           "IMAGES",
           "IMAGES_ANSWER",
           "MODERATIONS",
           "NUMBERS",
           "RERANK",
           "RERANK_ANSWER",
           "SPEECH",
]  # fmt: skip

_PART = Tagged(
    "type",
    {
        "text": Object({"type": SKIP, "text": Text()}),
        "input_text": Object({"type": SKIP, "text": Text()}),
        "image_url": Object(
            {"type": SKIP, "image_url": Choice(text=Link("image"), one=Object({"url": Link("image")}))}
        ),
    },
)
_INPUT = Choice(text=Text(), many=Each(Choice(text=Text(), one=_PART)))
EMBEDDINGS = Object({"model": SKIP, "input": _INPUT, "encoding_format": SKIP, "dimensions": SKIP})
MODERATIONS = Object({"model": SKIP, "input": _INPUT})
_DOCUMENT = Choice(text=Text(), one=Object({"text": Text(), "image": Link("image")}))
RERANK = Object({"model": SKIP, "query": _DOCUMENT, "documents": Each(_DOCUMENT), "truncation": SKIP})
RERANK_ANSWER = Object(
    {
        "id": SKIP,
        "object": SKIP,
        "model": SKIP,
        "usage": SKIP,
        "meta": SKIP,
        "results": Each(Object({"index": SKIP, "relevance_score": SKIP, "document": _DOCUMENT})),
    }
)
IMAGES = Object(
    {
        "model": SKIP,
        "prompt": Text(),
        "size": SKIP,
        "quality": SKIP,
        "style": SKIP,
        "background": SKIP,
        "moderation": SKIP,
        "output_format": SKIP,
        "response_format": SKIP,
    }
)
IMAGES_ANSWER = Object(
    {
        "created": SKIP,
        "usage": SKIP,
        "background": SKIP,
        "output_format": SKIP,
        "quality": SKIP,
        "size": SKIP,
        "data": Each(Object({"b64_json": Opaque("image"), "url": Link("image"), "revised_prompt": Text()})),
    }
)
SPEECH = Object(
    {"model": SKIP, "input": Text(), "instructions": Text("system"), "voice": SKIP, "response_format": SKIP,
     "stream_format": SKIP}
)  # fmt: skip

_EMBED = {"model": SKIP, "content": gemini.CONTENT, "title": Text(), "taskType": SKIP, "task_type": SKIP}
EMBED = Object(_EMBED)
EMBED_BATCH = Object({"model": SKIP, "requests": Each(Object(_EMBED))})
COUNT = Object(
    {
        "model": SKIP,
        "contents": gemini.CONTENTS,
        "generateContentRequest": gemini.REQUEST,
        "generate_content_request": gemini.REQUEST,
    }
)
NUMBERS = Object({}, rest=SKIP)
"""An answer in which there are no words of anybody's."""
