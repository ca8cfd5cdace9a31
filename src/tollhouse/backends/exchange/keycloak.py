"""Token exchange at Keycloak 26.2 and later (its standard version).

Rule: an audience is the id of a client there, the token that is exchanged must be for us, and tokens do not name who
acts. Keycloak adds audiences of its own when it is set up so; such a token is not used.
"""

from collections.abc import Collection

from tollhouse.backends.exchange.asked import ACCESS_TOKEN, Subject
from tollhouse.backends.exchange.rfc8693 import GRANT
from tollhouse.core.call import Principal
from tollhouse.core.identity import Target

__all__ = ["Keycloak"]


class Keycloak:
    """`backends.exchange.asked.Asking`."""

    own_life = True
    typed = True

    def form(self, principal: Principal, target: Target, subject: Subject) -> dict[str, str]:
        fields = {
            "grant_type": GRANT,
            "subject_token": subject.token,
            "subject_token_type": ACCESS_TOKEN,  # the only one it takes
            "requested_token_type": ACCESS_TOKEN,
            "audience": target.audience,
        }
        if target.scopes:
            fields["scope"] = " ".join(target.scopes)
        return fields

    def scopes(self, target: Target) -> Collection[str]:
        # It names the scopes of OpenID Connect that its clients have by default, whatever was asked.
        return (*target.scopes, "openid", "profile", "email") if target.scopes else ()

    def audiences(self, target: Target) -> Collection[str]:
        return (target.audience,)
