"""Findings of several questions about the same texts, as those of one.

Rule: what concerns the texts as a whole is said once. Spans that overlap, because two pieces had the same part of a
text and one of them ended within, become one that covers both, in the words of the longer.
"""

from collections.abc import Iterable

from tollhouse.policies.guardrails.check import Finding, Span

__all__ = ["placed"]


def placed(findings: Iterable[Finding]) -> list[Finding]:
    """Those of whole texts first."""
    whole: dict[str, Finding] = {}
    several: list[Finding] = []
    places: list[tuple[Span, int, str]] = []  # with the finding's number, and what stands in its place
    for finding in findings:
        if not finding.spans:
            whole.setdefault(finding.rule, finding)
            continue
        texts = finding.replaces or ("",) * len(finding.spans)
        places += [(span, len(several), text) for span, text in zip(finding.spans, texts, strict=True)]
        several.append(finding)
    kept: dict[int, list[tuple[Span, str]]] = {}
    for span, number, text in _apart(places):
        kept.setdefault(number, []).append((span, text))
    found = [_with(several[number], own) for number, own in sorted(kept.items())]
    return [*whole.values(), *found]


def _apart(places: list[tuple[Span, int, str]]) -> list[tuple[Span, int, str]]:
    """In order, none overlapping another."""
    out: list[tuple[Span, int, str]] = []
    longest = 0
    for span, number, text in sorted(places):
        if not out or span[0] != out[-1][0][0] or span[1] >= out[-1][0][2]:
            out.append((span, number, text))
            longest = span[2] - span[1]
            continue
        (index, start, end), own, words = out[-1]
        if span[2] - span[1] > longest:
            longest, own, words = span[2] - span[1], number, text
        out[-1] = ((index, start, max(end, span[2])), own, words)
    return out


def _with(finding: Finding, places: list[tuple[Span, str]]) -> Finding:
    spans = tuple(span for span, _ in places)
    replaces = tuple(text for _, text in places) if finding.replaces else ()
    return Finding(finding.rule, spans, finding.message, replaces, finding.decided, finding.shown)
