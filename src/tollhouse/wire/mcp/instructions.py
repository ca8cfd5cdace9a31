"""Texts that tell the model what to do behind the user's back, by patterns.

Rule: a pattern stands for what attacks have in common and honest descriptions lack; where those overlap its score is
low. Gaps are bounded and end with a sentence, so that no text takes more than linear time. Those here are in English;
the plainest of them in other languages are `instructions_other`.
"""

import re
from collections.abc import Iterator

from tollhouse.wire.mcp import instructions_other
from tollhouse.wire.mcp.letters import plain, sample, spelled

__all__ = ["told"]

_GAP = r"[^.;\n]{0,40}?"


def _any(*parts: str) -> re.Pattern[str]:
    return re.compile("|".join(parts), re.ASCII)


_AS_WRITTEN: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "chat-markup",
        re.compile(
            r"<\|[a-z_]{2,20}\|>|\[/?INST\]|<</?SYS>>|</?(?:[a-z]{1,12}:)?(?:tool_description|tool_result"
            r"|function_results?|function_calls?|system-reminder|available_tools)>"
            r"|(?:^|\n)\s{0,4}(?:Human|Assistant|System):\s",
            re.IGNORECASE,
        ),
    ),
    (
        "pseudo-tag",
        re.compile(
            r"<\s{0,2}/?(?:important|system|critical|secret|hidden|admin|instructions?|override|urgent|mandatory)\s{0,2}>",
            re.IGNORECASE,
        ),
    ),
    ("hidden-comment", re.compile(r"<!--")),
    ("encoded", re.compile(r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{200}|(?:\\x[0-9a-fA-F]{2}){16,}")),
)
_PADDING = re.compile(r"[ \t\u00a0\u2000-\u200a\u3000]{60}|(?:\r?\n[ \t]{0,8}){15}")

_AS_READ: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "override",
        _any(
            rf"\b(?:ignore|disregard|forget|override|bypass|do not follow|don't follow)\b{_GAP}"
            r"\b(?:previous|prior|earlier|above|preceding|existing|system|other|any|all|safety|your)\b"
            rf"{_GAP}\b(?:instructions?|prompts?|rules|guidelines|directives?|guardrails|policies|messages)\b"
        ),
    ),
    (
        "role",
        _any(
            r"\byou are (?:now|no longer)\b",
            r"\bfrom now on\b",
            r"\bnew (?:system )?(?:instructions|prompt) ?:",
            r"\b(?:pretend|act as if) you\b",
            r"\byour (?:new|real|true) (?:role|task|goal|objective|instructions)\b",
        ),
    ),
    (
        "secrecy",
        _any(
            r"\b(?:do not|don't|never|must not|should not|without|avoid)\b.{0,20}?\b(?:tell(?:ing)?|mention(?:ing)?"
            r"|inform(?:ing)?|notify(?:ing)?|reveal(?:ing)?|disclos(?:e|ing)|alert(?:ing)?|warn(?:ing)?|let)\b"
            rf"{_GAP}\b(?:users?|humans?|person|anyone|anybody|operator|customer)\b",
            r"\b(?:keep|hide|conceal)\b.{0,30}?\bfrom the (?:user|human|operator|customer)\b",
            r"\b(?:user|human) (?:must|should|need) (?:not|never)"
            r" (?:know|see|learn|notice|be (?:told|informed|aware))\b",
        ),
    ),
    (
        "unasked",
        _any(
            r"\b(?:silently|secretly|covertly|surreptitiously|stealthily)"
            r" (?:send|read|call|use|run|add|include|copy|forward|upload|execute|collect)\b",
            r"\bwithout (?:the user|their|user|asking|any|explicit)[^.;\n]{0,20}?"
            r"\b(?:knowledge|consent|permission|confirmation|approval|noticing|knowing)\b",
        ),
    ),
    (
        "sensitive-file",
        _any(
            r"~/\.(?:ssh|aws|gnupg|kube|docker|cursor|config/gcloud|netrc|npmrc|pypirc|git-credentials)\b",
            r"~/\.(?:bash|zsh)_history\b",
            r"\bid_(?:rsa|ed25519|ecdsa)\b",
            r"\.aws/credentials\b",
            r"/etc/(?:passwd|shadow|sudoers)\b",
            r"\bmcp\.json\b",
            r"\bclaude_desktop_config\b",
            r"\blogin\.keychain\b",
            r"\bwallet\.dat\b",
        ),
    ),
    (
        "exfiltration",
        _any(
            r"\b(?:send|forward|upload|post|transmit|exfiltrate|leak|attach|append|include|insert|embed|copy|put|pass"
            r"|place|provide|write|bcc|encode)\b[^.;\n]{0,60}?\b(?:(?:full|entire|whole|complete|current|previous|your)"
            r" (?:conversation|chat|context|prompt|message history)"
            r"|(?:conversation|chat|message) (?:history|log|transcript)"
            r"|system prompt|(?:api|ssh|private|secret|access) keys\b|private key|environment variables|env vars"
            r"|passwords|credentials file"
            r"|(?:all|every|other|available) tools?(?:' names| names| descriptions| definitions))\b"
        ),
    ),
    (
        "prerequisite",
        _any(
            rf"\b(?:before|prior to) (?:using|calling|invoking|running|executing) (?:this|the|any)\b{_GAP}"
            r"\b(?:read|open|access|fetch|cat|send|forward|upload|list the contents)\b"
        ),
    ),
    (
        "any-other-tool",
        _any(
            r"\b(?:before|after|when|whenever|each time|every time|instead of)\b[^.;\n]{0,24}?"
            r"\b(?:any|every|all|each|another|other)(?: of the)?(?: other)? (?:tools?|functions?|mcp servers?)\b",
            r"\bthis tool (?:replaces|supersedes|overrides) (?:all|any|every|the)\b",
        ),
    ),
    (
        "coercion",
        _any(
            r"\b(?:otherwise|or else|failure to do so|if you do not|if you don't)\b[^.;\n]{0,60}?\b(?:will not work"
            r"|will fail|be lost|be deleted|be terminated|be shut down|be punished|crash|be penali[sz]ed|upset)\b"
        ),
    ),
)
_TELLING = re.compile(
    r"ignore|disregard|forget|overrid|bypass|follow|you are|from now|new |pretend|act as|your |not |n't|never|without"
    r"|avoid|keep|hide|conceal|silent|secret|covert|stealth|surrepti|~/\.|id_|aws|/etc/|mcp\.json|claude_|keychain"
    r"|wallet\.|send|forward|upload|post|transmit|exfil|leak|attach|append|includ|insert|embed|copy|put|pass|place"
    r"|provid|write|bcc|encod|before|prior|after|when|time|instead|this tool|otherwise|else|failure|if you"
)
"""A word without which no pattern of `_AS_READ` fits: most texts are short and have none."""


def told(text: str) -> Iterator[tuple[str, str]]:
    """The rules of `scan` that a text breaks, each once, with what breaks them, to be shown."""
    for rule, pattern in _AS_WRITTEN:
        match = pattern.search(text)
        if match is not None:
            yield rule, sample(text[match.start() : match.start() + 200])
    match = _PADDING.search(text)
    if match is not None and (after := text[match.end() :].lstrip()):
        yield "padding", sample(after[:200])
    reads = plain(text)
    broken = set()
    if _TELLING.search(reads) is not None:
        for rule, pattern in _AS_READ:
            match = pattern.search(reads)
            if match is not None:
                broken.add(rule)
                yield rule, sample(match[0])
    for rule, what in instructions_other.told(reads if text.isascii() else spelled(text)):
        if rule not in broken:
            yield rule, sample(what)
