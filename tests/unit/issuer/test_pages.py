"""Pages: text stays text, whoever wrote it, and each page can be read without seeing it."""

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.issuer.pages.account import Connected, connect, connected, leaving
from tollhouse.issuer.pages.consent import Application, Wish, consent
from tollhouse.issuer.pages.device import ask_code, confirm
from tollhouse.issuer.pages.grants import Allowed, grants
from tollhouse.issuer.pages.layout import Markup, answer, fill, page
from tollhouse.issuer.pages.login import Elsewhere, login
from tollhouse.issuer.pages.logout import confirm_logout
from tollhouse.issuer.pages.message import message
from tollhouse.issuer.pages.onward import form_post, onward, refresh


class Reader(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data


def every_page(text: str) -> list[Markup]:
    """Each page, with `text` wherever somebody else has a word."""
    application = Application(text, text, False)
    wish = Wish(text, text, [text])
    return [
        login(
            action="/a",
            interaction=text,
            csrf=text,
            client=text,
            username=text,
            notice=text,
            has_passwords=True,
            elsewhere=[Elsewhere(text, text)],
            current=text,
        ),
        connect(
            action="/a",
            switch=text,
            grants="/g",
            link=text,
            csrf=text,
            user=text,
            server=text,
            host=text,
            scopes=[text],
            agent=application,
            since=text,
        ),
        leaving(text, text),
        consent(
            action="/a",
            switch=text,
            grants="/g",
            interaction=text,
            csrf=text,
            user=text,
            application=application,
            redirect=text,
            is_local=True,
            asked=[wish],
            is_difference=True,
        ),
        ask_code(action="/a", csrf=text, user=text, code=text, notice=text),
        confirm(action="/a", csrf=text, user=text, code=text, application=application, asked=[wish]),
        grants(
            action="/a",
            logout="/l",
            csrf=text,
            user=text,
            notice=text,
            allowed=[Allowed(text, application, text, [text], [wish])],
            accounts=connected([Connected(text, text, [text], text)], action="/a", csrf=text),
        ),
        confirm_logout(action="/a", csrf=text, user=text, fields=[(text, text)]),
        message(text, text, code=text, link=(text, text)),
        onward("https://app.example.com/?x=" + text, text),
        form_post("https://app.example.com/", text, [(text, text)]),
    ]


@given(st.text(max_size=60))
def test_no_text_adds_a_tag_or_an_attribute(text: str) -> None:
    for plain, filled in zip(every_page("word"), every_page(f"w{text}"), strict=True):
        expected, found = Reader(plain), Reader(filled)
        assert [(tag, sorted(had)) for tag, had in found.tags] == [(tag, sorted(had)) for tag, had in expected.tags]


@pytest.mark.parametrize("text", ['"><script>alert(1)</script>', "' onclick='x", "{title}", "{0.__class__}", "&lt;b>"])
def test_what_tries_to_be_more_stays_text(text: str) -> None:
    for body in every_page(text):
        assert "<script>alert" not in body
        assert text in " ".join([Reader(body).text, *(v for _, a in Reader(body).tags for v in a.values())])


def test_letters_that_change_the_direction_of_others_are_taken_out() -> None:
    assert fill("{name}", name="bank\u202eknab\u2066x\u200bz") == "bankknabxz"
    assert fill("{name}", name="a\x00b\x07c\n\td") == "abc\n\td"


def test_markup_is_not_escaped_twice() -> None:
    assert fill("<b>{inner}</b>", inner=fill("{text}", text="a & b")) == "<b>a &amp; b</b>"


@pytest.mark.parametrize("number", range(11))
def test_each_page_can_be_read_without_seeing_it(number: int) -> None:
    found = Reader(page("A title", every_page("word")[number], base="", host="auth.example.com"))
    tags = found.tags
    assert ("html", {"lang": "en"}) in tags
    assert sum(tag == "h1" for tag, _ in tags) == 1
    labelled = {had["for"] for tag, had in tags if tag == "label"}
    for tag, had in tags:
        if tag == "input" and had["type"] != "hidden":
            assert had["id"] in labelled
        assert "style" not in had
        assert not any(name.startswith("on") for name in had)


def test_a_page_leads_on_by_itself_to_web_addresses_only() -> None:
    assert "https://app.example.com/cb?a=1&amp;b=2" in refresh("https://app.example.com/cb?a=1&b=2")
    assert refresh("com.example.app:/cb") == ""
    assert refresh("javascript:alert(1)") == ""


def test_the_fields_keep_browsers_in_line() -> None:
    headers = dict(answer(200, Markup("x")).headers)
    assert headers[b"content-security-policy"] == (
        b"default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; frame-ancestors 'none'; "
        b"form-action 'self'"
    )
    assert headers[b"cache-control"] == b"no-store"
