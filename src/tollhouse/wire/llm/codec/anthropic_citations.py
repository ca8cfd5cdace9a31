"""Anthropic's citations and the neutral model's, in requests, answers and streams alike."""

from typing import Any

from tollhouse.wire.llm.codec.reading import Fields
from tollhouse.wire.llm.model import Citation

__all__ = ["read_citation", "write_citation"]

_DOCUMENT = {
    "char_location": ("char", "start_char_index", "end_char_index"),
    "page_location": ("page", "start_page_number", "end_page_number"),
    "content_block_location": ("block", "start_block_index", "end_block_index"),
}
_OURS = {ours: (theirs, start, stop) for theirs, (ours, start, stop) in _DOCUMENT.items()}


def read_citation(f: Fields) -> Citation:
    """Of any kind; what only this API says of it rides along."""
    kind = f.need_text("type")
    known = _DOCUMENT.get(kind)
    if known is not None:
        ours, start, stop = known
        citation = Citation(ours, f.text("document_title"), None, f.integer("document_index"))
        citation.start = f.integer(start)
        citation.stop = f.integer(stop)
    elif kind == "web_search_result_location":
        citation = Citation("url", f.text("title"), f.text("url"))
        if f.peek_text("encrypted_index") == "":
            f.raw("encrypted_index")  # of a citation that came from another API
    elif kind == "search_result_location":
        citation = Citation("search", f.text("title"), f.text("source"), f.integer("search_result_index"))
        citation.start = f.integer("start_block_index")
        citation.stop = f.integer("end_block_index")
    else:
        return Citation(kind, extra=f.rest())
    citation.quote = f.text("cited_text")
    citation.extra = f.rest()
    return citation


def write_citation(citation: Citation, *, own: bool) -> dict[str, Any]:
    """A citation in a text block. own: what rides along is this API's."""
    quote = citation.quote or ""
    known = _OURS.get(citation.kind)
    if known is not None:
        kind, start, stop = known
        form = {
            "type": kind,
            "cited_text": quote,
            "document_index": citation.document or 0,
            "document_title": citation.title,
            start: citation.start or 0,
            stop: citation.stop or 0,
        }
    elif citation.kind == "search":
        form = {
            "type": "search_result_location",
            "source": citation.url or "",
            "title": citation.title,
            "cited_text": quote,
            "search_result_index": citation.document or 0,
            "start_block_index": citation.start or 0,
            "end_block_index": citation.stop or 0,
        }
    elif citation.kind == "url":
        form = {
            "type": "web_search_result_location",
            "url": citation.url or "",
            "title": citation.title,
            "cited_text": quote,
            "encrypted_index": "",
        }
    else:
        form = {"type": citation.kind}
    if own and citation.extra:
        form.update(citation.extra)
    return form
