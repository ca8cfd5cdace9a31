"""Token exchange as it is written down (RFC 8693), which our own auth provider speaks too.

Rule: a server is named by its URI as `resource`, and what is no URI for that (a tool, a name) as `audience`.
"""

from collections.abc import Collection
from typing import Final

from tollhouse.backends.exchange.asked import ACCESS_TOKEN, Subject
from tollhouse.core.call import Principal
from tollhouse.core.identity import Target

__all__ = ["GRANT", "Rfc8693"]

GRANT: Final = "urn:ietf:params:oauth:grant-type:token-exchange"


class Rfc8693:
    """`backends.exchange.asked.Asking`."""

    own_life = False
    typed = True

    def form(self, principal: Principal, target: Target, subject: Subject) -> dict[str, str]:
        audience = target.audience
        name = "resource" if "://" in audience and "#" not in audience else "audience"
        fields = {
            "grant_type": GRANT,
            "subject_token": subject.token,
            "subject_token_type": subject.type,
            "requested_token_type": ACCESS_TOKEN,
            name: audience,
            "requested_ttl": str(max(1, int(target.ttl))),  # ours; others leave aside what they do not know
        }
        if target.scopes:
            fields["scope"] = " ".join(target.scopes)
        return fields

    def scopes(self, target: Target) -> Collection[str]:
        return target.scopes

    def audiences(self, target: Target) -> Collection[str]:
        return (target.audience,)
