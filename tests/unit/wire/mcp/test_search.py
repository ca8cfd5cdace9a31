"""The search over tools: what is found first, what is never found, and what it takes."""

import json
from time import thread_time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.wire.mcp.catalogue import Entry, Listing
from tollhouse.wire.mcp.search import Found, Index, Indexes, fuse, nearest, rank, terms


def tool(name: str, description: Any = "", *arguments: str, **more: Any) -> Entry:
    schema = {"type": "object", "properties": {argument: {"type": "string"} for argument in arguments}}
    return Entry(name, json.dumps({"name": name, "description": description, "inputSchema": schema, **more}).encode())


GITHUB = [
    tool("create_issue", "Open an issue in a repository.", "owner", "repo", "title", "body"),
    tool("list_issues", "Lists the issues of a repository.", "owner", "repo", "state"),
    tool("mergePullRequest", "Merges a pull request.", "owner", "repo", "number"),
    tool("get_file", "Reads a file.", "owner", "repo", "path"),
]
CALENDAR = [
    tool("create_event", "Puts a meeting into somebody's calendar.", "start", "end", "attendees"),
    tool("find_slot", "Finds free time for several people.", "people", "length"),
    tool("予定を作成", "カレンダーに新しい予定を追加します。"),
]
PARTS = [Index("github", GITHUB), Index("calendar", CALENDAR)]
ALL = [(index, b"\1" * len(index)) for index in PARTS]


def found(query: str, parts: Any = None, limit: int = 3) -> list[str]:
    return [PARTS[hit.at].entries[hit.entry].name for hit in rank(query, ALL if parts is None else parts, limit)]


@pytest.mark.parametrize(
    "query, first",
    [
        ("open an issue", "create_issue"),
        ("listing issues", "list_issues"),
        ("issue list", "list_issues"),
        ("merge a PR: pull requests", "mergePullRequest"),
        ("schedule a meeting in the calendar", "create_event"),
        ("attendees", "create_event"),
        ("when are several people free?", "find_slot"),
        ("予定 作成", "予定を作成"),
        ("cale", "create_event"),
        ("calendars", "create_event"),
        ("READ FILES", "get_file"),
    ],
)
def test_what_fits_best_comes_first(query: str, first: str) -> None:
    assert found(query, limit=1) == [first]


HOOKS = Index(
    "forge",
    [
        tool("create_webhook", "Has somebody told of what happens."),
        tool("list_repositories", "Lists what is kept here."),
        tool("star_project", "Keeps it among those that the caller likes."),
        tool("lock_ticket", "Nobody can write to it any more."),
        tool("get_terms", "Reads the terms. " + "It needs the scope issues, and webhooks, and a token. " * 20),
    ],
)


@pytest.mark.parametrize(
    "query, first",
    [
        ("a web hook", "create_webhook"),  # neighbours that are one word elsewhere
        ("where are my repos", "list_repositories"),
        ("lock this bug", "lock_ticket"),  # by what it is called elsewhere
        ("webhooks", "create_webhook"),  # though the word stands twenty times behind what another is for
        ("start a project", "star_project"),  # begins alike, and nothing else is asked for that is there
    ],
)
def test_words_that_stand_for_others(query: str, first: str) -> None:
    (hit, *_) = rank(query, [(HOOKS, b"\1" * len(HOOKS))], 3)
    assert HOOKS.entries[hit.entry].name == first


def test_words_that_say_nothing_are_not_looked_for() -> None:
    index = Index("s", [tool("here", "What there is, and how much of it you have."), tool("send_file", "Sends it.")])
    for query in ("where is my file", "how much of the file is there", "please can you send the file for me"):
        assert rank(query, [(index, b"\1\1")], 2) == [Found(0, 1)]
    assert rank("what is there", [(index, b"\1\1")], 1) == [Found(0, 0)]  # unless nothing else is asked


def test_nothing_fits() -> None:
    assert found("cal") == []  # three letters are too few to guess from
    assert found("quantum chromodynamics") == found("") == found("the of and") == found("\0\ud800") == []
    assert rank("x", [], 3) == []


def test_a_server_is_a_word_of_its_tools() -> None:
    assert set(found("github", limit=10)) == {entry.name for entry in GITHUB}


def test_hidden_tools_are_not_found_and_do_not_count() -> None:
    seen = b"\0\1\1\1"
    hidden = [(PARTS[0], seen), (PARTS[1], b"\1\1\1")]
    without = [(Index("github", GITHUB[1:]), b"\1\1\1"), (PARTS[1], b"\1\1\1")]
    for query in ("issue repository", "create", "open title body", "owner"):
        names = [hidden[hit.at][0].entries[hit.entry].name for hit in rank(query, hidden, 10)]
        assert "create_issue" not in names
        assert names == [without[hit.at][0].entries[hit.entry].name for hit in rank(query, without, 10)]
    assert rank("issue", [(PARTS[0], b"\0" * 4)], 3) == []


def test_equals_keep_the_order_of_the_catalogue() -> None:
    same = Index("s", [tool(f"copy_{letter}", "Copies.") for letter in "dbec"])
    hits = rank("copies", [(same, b"\1" * 4)], 10)
    assert hits == [Found(0, n) for n in range(4)]
    assert rank("copies", [(same, b"\1" * 4)], 2) == hits[:2]


@pytest.mark.parametrize(
    "raw",
    [
        b'{"name":"x"}',
        b'{"name":"x","description":7,"inputSchema":[],"title":{}}',
        b'{"name":"x","inputSchema":{"properties":[1,2]}}',
        b'{"name":"x","annotations":{"title":3},"inputSchema":{"properties":null}}',
        b'{"name":"x","inputSchema":' + b'{"a":' * 3000 + b"1" + b"}" * 3000 + b"}",
        b"not json",
    ],
)
def test_odd_tools_are_found_by_their_name(raw: bytes) -> None:
    index = Index("s", [Entry("delete_everything", raw)])
    assert rank("delete", [(index, b"\1")], 1) == [Found(0, 0)]
    assert index.texts[0].startswith("s: delete_everything")


def test_titles_count() -> None:
    index = Index("s", [tool("a", title="Weather forecast"), tool("b", annotations={"title": "Postal codes"})])
    assert rank("forecast", [(index, b"\1\1")], 1) == [Found(0, 0)]
    assert rank("postal", [(index, b"\1\1")], 1) == [Found(0, 1)]


def test_words() -> None:
    assert terms("createPullRequests") == terms("create_pull_request") == ["creat", "pull", "request"]
    assert terms("HTTPServer v2") == ["http", "server", "v2"]
    assert terms("queries query") == ["query", "query"]
    assert terms("running stopped status files") == ["run", "stop", "status", "file"]
    assert terms("検索する") == ["検索", "索す", "する"]


@given(st.text(max_size=200), st.lists(st.booleans(), min_size=4, max_size=4))
def test_any_query(query: str, seen: list[bool]) -> None:
    hits = rank(query, [(PARTS[0], bytes(seen))], 3)
    assert len(hits) <= 3
    assert all(seen[hit.entry] for hit in hits)


def test_one_index_for_each_catalogue() -> None:
    indexes = Indexes(limit=2)
    listing = Listing(GITHUB, at=0, until=1)
    same = Listing(GITHUB, at=5, until=9)
    first = indexes.of("github", listing)
    assert indexes.of("github", same) is first
    assert indexes.of("other", listing) is not first
    assert indexes.of("github", Listing(GITHUB[1:], at=0, until=1)) is not first
    assert indexes.of("github", listing) is not first  # it was the oldest of three


def test_vectors_and_two_orders() -> None:
    a, b, c = Found(0, 0), Found(0, 1), Found(1, 0)
    assert nearest([1.0, 0.0], [(a, [0.0, 1.0]), (b, [1.0, 0.0]), (c, [0.6, 0.8]), (c, [1.0])], 2) == [b, c]
    assert fuse([a, b], [c, b], 2) == [b, a]
    assert fuse([a], [], 5) == [a]


def test_a_thousand_tools() -> None:
    words = ["create", "list", "delete", "update", "issue", "repo", "branch", "event", "invoice", "customer", "payment"]
    words += ["search", "mail", "file", "user"]
    parts = []
    for server in range(20):
        entries = [
            tool(f"{words[n % 15]}_{words[(n * 7 + server) % 15]}_{n}", " ".join(words[n % 5 :: 2] * 4), *words[:4])
            for n in range(50)
        ]
        parts.append((Index(f"server{server}", entries), b"\1" * 50))
    began = thread_time()
    for _ in range(10):
        assert len(rank("create an invoice for a customer", parts, 5)) == 5
    assert (thread_time() - began) / 10 < 0.1  # some 3 ms
