"""What handlers for browsers share: who is there, and how pages and redirects go out.

Rule: a handler shows a page, sends the browser to another page of ours (303, so that no form is posted twice and no
password goes along, RFC 9700 section 4.12), or lets it leave by `authorization_response`.
"""

from collections.abc import Iterable
from hashlib import sha256
from urllib.parse import quote, urlencode, urlsplit

from tollhouse.core.http import Request, Response
from tollhouse.issuer.clients import Client
from tollhouse.issuer.cookies import Cookies
from tollhouse.issuer.interaction import Interactions
from tollhouse.issuer.pages.consent import Application
from tollhouse.issuer.pages.layout import Markup, answer, page
from tollhouse.issuer.pages.message import message
from tollhouse.issuer.parts import Parts
from tollhouse.issuer.records import Interaction, Session
from tollhouse.issuer.session import Sessions
from tollhouse.issuer.spec import LOOPBACK_HOSTS, UserSpec
from tollhouse.issuer.subject import is_federated

__all__ = ["Browser", "application", "name_of", "password_id", "redirect_host"]

_NONE = Markup("")


class Browser:
    """origin: of the issuer, as browsers write it. host: what people see at the foot of each page."""

    __slots__ = ("base", "cookies", "host", "interactions", "origin", "sessions")

    def __init__(self, parts: Parts) -> None:
        split = urlsplit(parts.url)
        self.base = parts.base
        self.host = split.netloc
        self.origin = f"{split.scheme}://{split.netloc}".lower()
        self.cookies = Cookies(parts.url, parts.spec.cookie)
        local = {user.name: password_id(user) for user in parts.spec.users}
        links = {upstream.issuer: upstream.link_by_email for upstream in parts.spec.upstream}

        def is_good(session: Session) -> bool:
            """Whether the configuration still has who vouched, and whom, with the password that was given, and neither
            they nor it have been revoked."""
            if session.upstream and session.upstream not in links:
                return False
            known = local.get(session.sub)
            is_known = known is not None and (
                links[session.upstream] if session.upstream else known == session.password
            )
            revoked = parts.revocations.has
            return (is_known or _is_foreign(session)) and not (
                revoked("sub", session.sub, parts.url, session.began) or revoked("sid", session.sid, parts.url)
            )

        async def revoke(session: Session) -> None:
            if session.sid:
                await parts.families.end_session(session.sid)
            if parts.backchannel is not None:
                parts.backchannel.ended(session)

        self.sessions = Sessions(parts.tables.sessions, self.cookies, parts.spec.ttl, parts.now, is_good, revoke)
        self.interactions = Interactions(parts.tables.interactions, self.cookies, parts.now)

    def path(self, name: str, **query: str) -> str:
        """Where a page of ours is, for links and forms."""
        told = {key: value for key, value in query.items() if value}
        return f"{self.base}/oauth/{name}" + (f"?{urlencode(told, quote_via=quote)}" if told else "")

    def page(
        self,
        title: str,
        body: Markup,
        status: int = 200,
        *,
        head: Markup = _NONE,
        form_action: str = "'self'",
        script: str = "",
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> Response:
        document = page(title, body, base=self.base, host=self.host, head=head)
        return answer(status, document, form_action=form_action, script=script, headers=headers)

    def error(self, request: Request, status: int, code: str, description: str) -> Response:
        """The page for an error (`answers.ErrorPage`)."""
        text = description[:1].upper() + description[1:] + "."
        return self.page(
            "That did not work", message("That did not work", text, code=code), status, form_action="'none'"
        )

    def see_other(self, location: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> Response:
        """To another page of ours, or out by a link that was followed: a GET, whatever this was."""
        fields = [
            (b"location", location.encode("ascii")),
            (b"cache-control", b"no-store"),
            (b"referrer-policy", b"no-referrer"),
            *headers,
        ]
        return Response(303, fields)

    def after_login(self, id: str, interaction: Interaction) -> str:
        """Where an interaction goes on once somebody is logged in."""
        if interaction.then == "device":
            return self.path("verify", user_code=interaction.device)
        if interaction.then == "grants":
            return self.path("grants")
        if interaction.then == "account":
            return self.path("upstream/start", l=interaction.link)
        return self.path("consent", i=id)

    async def begin_login(
        self, request: Request, interaction: Interaction, reference: str = "", *, after_form: bool = False
    ) -> Response:
        """To the login page, which comes back to `interaction.then`. after_form: so that it must be a page."""
        id, headers = await self.interactions.begin(request, interaction, reference)
        return self.see_other(self.path("login", i=id, again="1" if after_form else ""), headers)


def password_id(user: UserSpec) -> str:
    """What a session knows its user's password by, so that it ends when that is changed."""
    return sha256(user.password_hash.get_secret_value().encode()).hexdigest()[:24]


def _is_foreign(session: Session) -> bool:
    """Whether an upstream vouches for somebody whom it alone knows (`subject.federated`)."""
    return bool(session.upstream) and is_federated(session.sub)


def application(client: Client) -> Application:
    """A client as people see it."""
    host = "" if client.host in LOOPBACK_HOSTS else client.host
    return Application(client.name or client.id, host, client.verified)


def name_of(session: Session) -> str:
    """A user as people see one."""
    return session.user.email or session.user.name or session.sub


def redirect_host(uri: str) -> str:
    """Where an answer goes, as people see it and as consent is remembered: the host; for a scheme of an application's
    own, that."""
    split = urlsplit(uri)
    if split.scheme in ("http", "https"):
        return (split.hostname or "").lower()
    return f"{split.scheme}:"
