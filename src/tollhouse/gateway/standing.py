"""Who is let in by a configuration that begins to serve, of those whom the one before let in.

Rule: only what is written is compared, nobody is asked. Where what is written about a kind of credential, a key or an
issuer is another, what was opened with it ends: who is still known opens it again.
"""

from collections.abc import Callable
from typing import Any

from tollhouse.config.spec import Config
from tollhouse.core.call import Principal
from tollhouse.policies.authenticate.idp import issuers_of

__all__ = ["still_let_in"]

_SECTIONS = {
    "opaque": "introspection",
    "basic": "basic",
    "mtls": "mtls",
    "oidc": "oidc",
    "ext": "ext_authz",
}
"""Source of a principal to the setting of `authenticate` that it is known by, where that is one for all."""


def still_let_in(before: Config, now: Config) -> Callable[[Principal], bool] | None:
    """Whether a principal whom `before` let in may keep what it holds; None where all may."""
    old, new = before.authenticate, now.authenticate
    own = _own(before)
    lost = "" if own == _own(now) else own  # the auth provider in this process, whose tokens were taken
    if old == new and not lost:
        return None
    had, has = _named(old, "keys", "name"), _named(new, "keys", "name")
    trusted, trusts = _trusted(old), _trusted(new)
    open_ = new is None or new.mode == "optional"

    def good(principal: Principal) -> bool:
        source = principal.source
        if source == "anonymous":
            return open_
        if source == "jwt" and lost and principal.issuer == lost:
            return False
        if old == new:
            return True
        if new is None:
            return False
        if source == "jwt" and own and principal.issuer == own:
            return True
        if source == "key" and principal.key in had:
            return has.get(principal.key) == had[principal.key]
        if source == "key":
            return bool(_of(old, "issued") == _of(new, "issued"))
        if source == "jwt" and principal.issuer in trusted:
            return bool(trusts.get(principal.issuer) == trusted[principal.issuer])
        section = _SECTIONS.get(source)
        return section is None or bool(_of(old, section) == _of(new, section))

    return good


def _own(config: Config) -> str:
    return config.issuer.url if config.issuer is not None else ""


def _of(spec: Any, section: str) -> Any:
    return getattr(spec, section, None)


def _named(spec: Any, section: str, key: str) -> dict[str, list[Any]]:
    """The entries of a list by their name."""
    found: dict[str, list[Any]] = {}
    for entry in _of(spec, section) or ():
        found.setdefault(getattr(entry, key), []).append(entry)
    return found


def _trusted(spec: Any) -> dict[str, Any]:
    """The issuers of tokens by each `iss` that these may have."""
    return {name: entry for entry in _of(spec, "jwt") or () for name in issuers_of(entry.kind, entry.issuer)}
