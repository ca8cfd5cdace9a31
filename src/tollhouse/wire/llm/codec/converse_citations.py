"""Bedrock Converse's citations and the neutral model's, in answers and streams alike."""

from typing import Any

import msgspec

from tollhouse.wire.llm.codec import Lost
from tollhouse.wire.llm.codec.reading import Fields, put_back
from tollhouse.wire.llm.model import Citation

__all__ = ["read_citation", "write_citation"]

Raw = msgspec.Raw

_PLACES = {
    "documentChar": ("char", "documentIndex"),
    "documentPage": ("page", "documentIndex"),
    "documentChunk": ("block", "documentIndex"),
    "searchResultLocation": ("search", "searchResultIndex"),
}
_KINDS = {ours: (theirs, index) for theirs, (ours, index) in _PLACES.items()}


def read_citation(f: Fields) -> Citation:
    """Of any kind; what only this API says of it rides along. The stretch of the source that is quoted is one text."""
    citation = Citation("search", f.text("title"), f.text("source"))
    quoted = f.children("sourceContent")
    if quoted is not None:
        citation.quote = "".join(q.text("text") or "" for q in quoted)
    location = f.child("location")
    if location is not None:
        rest = _read_place(location, citation)
        if rest:
            extra = f.rest() or {}
            extra["location"] = rest
            citation.extra = extra
            return citation
    citation.extra = f.rest()
    return citation


def _read_place(location: Fields, citation: Citation) -> Raw | None:
    """Where the quote stands. Gives the whole place when it says more than we know."""
    whole = location.untouched()
    web = location.child("web")
    if web is not None:
        citation.kind = "url"
        url = web.text("url")
        if citation.url is None:
            citation.url = url
        domain = web.text("domain")  # a part of the URL; said again it would be a field of one API only
        known = url is not None and (domain is None or domain in url)
        return None if known and not web.rest() and not location.rest() else whole
    for theirs, (ours, index) in _PLACES.items():
        place = location.child(theirs)
        if place is not None:
            citation.kind = ours
            citation.document = place.integer(index)
            citation.start = place.integer("start")
            citation.stop = place.integer("end")
            return whole if place.rest() or location.rest() else None
    return whole if location.rest() else None


def write_citation(citation: Citation, own: bool, lost: Lost, where: str) -> dict[str, Any]:
    """A citation of a `citationsContent` block, or of a stream's delta."""
    form: dict[str, Any] = {}
    if citation.title is not None:
        form["title"] = citation.title
    place: dict[str, Any]
    if citation.kind == "url":
        place = {"web": {"url": citation.url or ""}}
    else:
        if citation.url is not None:
            form["source"] = citation.url
        theirs, index = _KINDS.get(citation.kind, _KINDS["search"])
        told = ((index, citation.document), ("start", citation.start), ("end", citation.stop))
        place = {theirs: {name: value for name, value in told if value is not None}}
    if citation.quote is not None:
        form["sourceContent"] = [{"text": citation.quote}]
    if citation.kind == "url" or place[theirs]:
        form["location"] = place
    put_back(form, citation.extra, own, lost, where)
    return form
