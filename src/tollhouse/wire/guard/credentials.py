"""Secrets and API keys, by the forms that their issuers give them.

Rule: a form with a prefix of its own is taken as it is; one that is only long and random needs a name beside it, and
enough entropy. What stands for a secret (`${TOKEN}`, `<your key>`, `xxxx`) is none.
"""

import re
from functools import partial

from tollhouse.wire.guard.checksums import entropy
from tollhouse.wire.guard.rules import Accept, Rule, pattern, words

__all__ = ["credentials"]


def credentials() -> dict[str, tuple[Rule, ...]]:
    """The rules by the name of the issuer or kind."""
    return {
        "aws": (
            pattern("aws", r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b", accept=_random(2.5), secret=True),
            pattern(
                "aws",
                r"[A-Za-z0-9/+]{40}\b",
                after=r"(?i:secret[_ -]?(?:access[_ -]?)?key\b[\"']?\s{0,4}(?:[:=]|=>|is)\s{0,4}[\"']?)",
                accept=_random(3.5),
                secret=True,
            ),
        ),
        "google": _any(
            "google", r"\bAIza[A-Za-z0-9_-]{35}", r"\bya29\.[A-Za-z0-9_-]{20,}", r"\bGOCSPX-[A-Za-z0-9_-]{28}"
        ),
        "azure": (
            pattern(
                "azure",
                r"[A-Za-z0-9+/]{86}==",
                after=r"(?i:\b(?:Account|SharedAccess)Key=)",
                accept=_random(3.5),
                secret=True,
            ),
            pattern("azure", r"[A-Za-z0-9%+/_-]{40,}={0,2}", after=r"[?&]sig=", accept=_random(3), secret=True),
        ),
        "github": _any(
            "github", r"\bgh[pousr]_[A-Za-z0-9]{36,255}\b", r"\bgithub_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}\b"
        ),
        "gitlab": _any("gitlab", r"\bgl(?:pat|dt|rt|ptt|cbt|ft|soat|agent|oas)-[A-Za-z0-9_.-]{20,}"),
        "slack": _any(
            "slack",
            r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}",
            r"\bxapp-[0-9]-[A-Za-z0-9-]{20,}",
            r"\bhooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9+/]{40,}",
        ),
        "openai": (
            *_any("openai", r"\bsk-(?:proj|svcacct|admin)-[A-Za-z0-9_-]{20,}", r"\bsk-[A-Za-z0-9]{32,}"),
        ),
        "anthropic": _any("anthropic", r"\bsk-ant-[A-Za-z0-9_-]{20,}"),
        "stripe": _any("stripe", r"\b[sr]k_(?:live|test)_[A-Za-z0-9]{16,}", r"\bwhsec_[A-Za-z0-9+/=]{32,}"),
        "huggingface": _any("huggingface", r"\bhf_[A-Za-z0-9]{34,}\b"),
        "npm": _any("npm", r"\bnpm_[A-Za-z0-9]{36}\b"),
        "pypi": _any("pypi", r"\bpypi-AgE[A-Za-z0-9_-]{50,}"),
        "sendgrid": _any("sendgrid", r"\bSG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}"),
        "twilio": _any("twilio", r"\b(?:SK|AC)[0-9a-f]{32}\b"),
        "mailgun": _any("mailgun", r"\bkey-[0-9a-f]{32}\b"),
        "telegram": _any("telegram", r"\b[0-9]{8,10}:AA[A-Za-z0-9_-]{33}"),
        "shopify": _any("shopify", r"\bshp(?:at|ca|pa|ss)_[A-Fa-f0-9]{32}\b"),
        "digitalocean": _any("digitalocean", r"\bdo[oprt]_v1_[a-f0-9]{64}\b"),
        "vault": _any("vault", r"\bhv[sbr]\.[A-Za-z0-9_-]{24,}"),
        "databricks": _any("databricks", r"\bdapi[a-f0-9]{32}(?:-[0-9])?\b"),
        "groq": _any("groq", r"\bgsk_[A-Za-z0-9]{52}\b"),
        "xai": _any("xai", r"\bxai-[A-Za-z0-9]{70,}"),
        "perplexity": _any("perplexity", r"\bpplx-[A-Za-z0-9]{40,}"),
        "replicate": _any("replicate", r"\br8_[A-Za-z0-9]{37}\b"),
        "linear": _any("linear", r"\blin_(?:api|oauth)_[A-Za-z0-9]{40,}"),
        "notion": _any("notion", r"\bntn_[A-Za-z0-9]{40,}"),
        "supabase": _any("supabase", r"\bsbp_[a-f0-9]{40}\b"),
        "age": _any("age", r"\bAGE-SECRET-KEY-1[0-9A-Z]{58}\b"),
        "jwt": (
            pattern("jwt", r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{16,}", secret=True),
            # Encrypted: five parts, the second one empty or a wrapped key.
            pattern(
                "jwt",
                r"\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]{16}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{22}\b",
                secret=True,
            ),
        ),
        "private_key": (
            pattern(
                "private_key",
                r"-----BEGIN (?:[A-Z]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"
                r"(?:(?:\s|\\[nr])*[A-Z][A-Za-z-]{2,30}: [^\r\n\\]{1,120})*"
                r"(?:[A-Za-z0-9+/=]{20,}|\s|\\[nr])*[A-Za-z0-9+/=]*(?:\s|\\[nr])*"
                r"(?:-----END (?:[A-Z]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----)?",
                secret=True,
            ),
        ),
        "bearer": (
            pattern(
                "bearer",
                r"[A-Za-z0-9._~+/-]{16,}={0,2}",
                after=r"(?i:\bbearer\s{1,4})",
                accept=_random(3),
                secret=True,
            ),
        ),
        "url_password": (
            pattern(
                "url_password",
                r"[^\s/@:\"'<>]{3,128}@",
                after=r"(?i:\b[a-z][a-z0-9+.-]{1,20}://[^\s/@:\"'<>]{1,64}:)",
                accept=_url_password,
                secret=True,
            ),
        ),
        "assigned": (
            pattern(
                "assigned",
                r"[^\s\"'`,;<>(){}\[\]]{8,200}",
                after=r"(?i:(?:api[_-]?key|secret|token|passw(?:or)?d|passphrase|client[_-]?secret|access[_-]?key|credential)s?"
                r"[\"']?\s{0,3}(?::=|=>|[:=])\s{0,3}[\"']?)",
                accept=_assigned,
                secret=True,
            ),
        ),
        "high_entropy": (
            pattern("high_entropy", r"\b[A-Za-z0-9+/_-]{32,128}={0,2}", accept=_high_entropy),
        ),
    }  # fmt: skip


def _any(name: str, *forms: str) -> tuple[Rule, ...]:
    return (words(name, forms, accept=_random(2), secret=True),)


def _random(bits: float) -> Accept:
    return partial(_is_random, bits)


_STANDS_FOR = re.compile(
    r"\$\{|\{\{|%[A-Za-z_]+%|\*{3}|\.{3}|(?i:x{6}|your[_-]|example|changeme|placeholder|redacted|dummy|insert)|1234567890abcdef"
)


def _is_random(bits: float, text: str) -> bool:
    return entropy(text) >= bits and _STANDS_FOR.search(text) is None


def _url_password(text: str) -> bool:
    return _STANDS_FOR.search(text) is None and text[:-1].lower() not in ("password", "pass", "pwd", "secret")


_CALLS = re.compile(
    r"(?i:os\.|env|process\.|config|settings|self\.|args|null$|none$|true$|false$|string$|str$|required)"
)


def _assigned(text: str) -> bool:
    if _CALLS.match(text) is not None or text.startswith(("$", "%", "http:", "https:", "/", "//")):
        return False
    if text.isdigit() or text.replace("_", "").replace("-", "").replace(".", "").isalpha():
        # Words and counts: `token: required-by-default`, `token=12345678`.
        return False
    return _is_random(2.75, text)


def _high_entropy(text: str) -> bool:
    if not (any(map(str.isdigit, text)) and any(map(str.islower, text)) and any(map(str.isupper, text))):
        return False
    return _is_random(4.2, text)
