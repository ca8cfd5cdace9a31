"""Authorization requests: what they must be before anybody is asked anything (RFC 6749, 7636, 8707, 9449, OAuth 2.1).

Rule: in this order. Until it is known that the client is one of ours and where its answers go, what is wrong is shown
to the person and nothing is sent anywhere; after that, the application is told.
"""

import re
from typing import NamedTuple

from tollhouse.issuer.clients import Client
from tollhouse.issuer.parts import Parts
from tollhouse.issuer.records import Interaction, Session
from tollhouse.issuer.scopes import scopes_for
from tollhouse.issuer.spec import GRANTS
from tollhouse.wire.oauth import Form, OAuthError, redirect_fits

__all__ = ["PROMPTS", "RESPONSE_MODES", "Target", "must_login", "read", "target_of"]

RESPONSE_MODES = ("query", "form_post")
PROMPTS = ("none", "login", "consent", "select_account")

_S256 = re.compile(r"[A-Za-z0-9_-]{43}")
_LONGEST_STATE = 8192
_LONGEST = 1024
_AGE = re.compile(r"[0-9]{1,9}")


class Target(NamedTuple):
    """Who asks, and where the answer goes. mode: how."""

    client: Client
    redirect_uri: str
    state: str | None
    mode: str


async def target_of(parts: Parts, form: Form, address: str = "") -> Target:
    """The client and where its answer goes. address: of a stranger who asks. Raises OAuthError, which goes to nobody
    but the person."""
    client_id = form.need("client_id")
    try:
        client = await parts.clients.find(client_id, address)
    except OAuthError as error:  # of its document; what it asks of clients is not for browsers
        if error.status == 503:
            raise
        raise OAuthError("invalid_request", error.description, detail=error.detail) from None
    if client is None:
        raise OAuthError("invalid_request", "no application of that client_id is known here")
    redirect_uri = form.need("redirect_uri")
    if not redirect_fits(client.redirect_uris, redirect_uri, native=client.native):
        raise OAuthError("invalid_request", "the redirect_uri is not one that this application has registered")
    mode = form.get("response_mode")
    state = form.get("state")
    return Target(
        client,
        redirect_uri,
        state if state and len(state) <= _LONGEST_STATE else None,
        mode if mode in RESPONSE_MODES else RESPONSE_MODES[0],
    )


def read(parts: Parts, target: Target, form: Form) -> Interaction:
    """What is asked for. Raises OAuthError, which the application is told."""
    client = target.client
    mode = form.get("response_mode") or RESPONSE_MODES[0]
    if mode not in RESPONSE_MODES or (mode == "form_post" and not target.redirect_uri.startswith(("https:", "http:"))):
        raise OAuthError("invalid_request", "the response_mode must be query, or form_post to a web address")
    if len(form.get("state")) > _LONGEST_STATE:
        raise OAuthError("invalid_request", "the state is longer than 8,192 characters")
    client.must(GRANTS["authorization_code"])
    if form.get("response_type") != "code":
        raise OAuthError("unsupported_response_type", "the response_type must be code")
    challenge = form.get("code_challenge")
    if form.get("code_challenge_method") != "S256" or _S256.fullmatch(challenge) is None:
        raise OAuthError("invalid_request", "PKCE is required: code_challenge_method S256 and its code_challenge")
    # What people are asked about is what tokens will be for, and what cannot be had they are not asked about.
    resources = parts.resources.asked(form.all("resource")) or parts.resources.unsaid(form.get("scope").split())
    if any(not client.may_target(uri) for uri in resources):
        raise OAuthError("invalid_target", "this application may not have tokens for that resource")
    scopes = scopes_for(client, parts.resources, form.get("scope"), resources)
    jkt = form.get("dpop_jkt")
    if jkt and _S256.fullmatch(jkt) is None:
        raise OAuthError("invalid_request", "the dpop_jkt is not the SHA-256 thumbprint of a key")
    return Interaction(
        client.id,
        target.redirect_uri,
        scopes,
        resources,
        challenge,
        state=target.state,
        response_mode="form_post" if mode == "form_post" else "query",
        nonce=_bounded(form, "nonce"),
        prompt=_prompt(form),
        max_age=_max_age(form),
        login_hint=form.get("login_hint")[:256],
        dpop_jkt=jkt,
    )


def must_login(interaction: Interaction, session: Session | None, now: float) -> bool:
    """Whether somebody must log in, or say as whom they go on, before this goes on. now: unix seconds."""
    if session is None:
        return True
    if interaction.began and session.began >= interaction.began:
        return False
    if interaction.max_age is not None and now - session.auth_time >= interaction.max_age:
        return True
    if "login" in interaction.prompt:
        return True
    return "select_account" in interaction.prompt and not interaction.logged_in


def _prompt(form: Form) -> tuple[str, ...]:
    prompts = tuple(dict.fromkeys(form.get("prompt").split()))
    if any(prompt not in PROMPTS for prompt in prompts):
        raise OAuthError("invalid_request", "the prompt must be none, or some of login, consent and select_account")
    if "none" in prompts and len(prompts) > 1:
        raise OAuthError("invalid_request", "the prompt none goes with no other")
    return prompts


def _max_age(form: Form) -> int | None:
    value = form.get("max_age")
    if not value:
        return None
    if _AGE.fullmatch(value) is None:
        raise OAuthError("invalid_request", "the max_age must be seconds")
    return int(value)


def _bounded(form: Form, name: str) -> str:
    value = form.get(name)
    if len(value) > _LONGEST:
        raise OAuthError("invalid_request", f"the {name} is longer than 1,024 characters")
    return value
