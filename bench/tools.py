"""Many tools: what the whole catalogue, search and code mode cost a model, in tokens and in turns.

    python bench/tools.py [--keep] [--gate]

A gateway in front of 20 servers with 1,000 tools; an agent does the same tasks three ways. What is real: every list,
search, call and program goes through the gateway, and every token that would stand in a request to a model or in its
answer is counted (o200k_base). What is not: the model. The agent is a script that always knows the next step, so
wrong choices, which a long list and a bad search both cause, are not in the figures; and the catalogue is made up. The
one thing that a model would have to get right and that can be measured without one, whether the search finds the tool
for a task in the words of the task, is measured by itself.

Needs what `scripts/setup` installs. Traffic goes to loopback.
"""

import argparse
import asyncio
import json
import lzma
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import bpe_openai

from wishes import GITHUB

REVISION = "2026-07-28"
RESULTS = Path(__file__).parent / "results"
DOCUMENT = Path(__file__).resolve().parents[1] / "tests/fixtures/openapi/github.json.xz"
LIST_MS = 2.0  # promised: processor time of a cached list of 1,000 tools
CACHED = 0.1  # what a token costs that the provider has in its prompt cache, of one that it has not: about this

# ---- 20 servers, 10 kinds of things each, 5 tools for each kind
THINGS: dict[str, str] = {
    "github": "issue pull_request repository branch commit release workflow label milestone comment",
    "gitlab": "issue merge_request project branch pipeline tag runner snippet board comment",
    "jira": "ticket sprint epic project board version component worklog comment filter",
    "slack": "message channel user reaction reminder file thread usergroup bookmark status",
    "gmail": "message draft label thread attachment filter signature contact forwarding_rule vacation_reply",
    "calendar": "event calendar reminder attendee room free_slot invitation recurrence timezone holiday",
    "drive": "file folder permission revision comment shared_drive shortcut export upload trash_item",
    "notion": "page database block comment user template property relation view workspace",
    "salesforce": "lead account opportunity contact case campaign quote contract report dashboard",
    "hubspot": "contact company deal ticket form list email_campaign workflow meeting note",
    "stripe": "customer invoice payment subscription refund price product coupon payout dispute",
    "shopify": "order product customer collection discount shipment inventory_level refund gift_card location",
    "zendesk": "ticket user organization macro trigger view article satisfaction_rating group tag",
    "postgres": "table query index schema role backup connection extension migration lock",
    "aws": "instance bucket function queue topic alarm stack certificate secret log_group",
    "kubernetes": "pod deployment service namespace config_map node job ingress volume event",
    "grafana": "dashboard panel datasource alert annotation folder team snapshot playlist silence",
    "sentry": "issue event project release alert_rule team replay span trace user_feedback",
    "maps": "place route distance geocode timezone elevation traffic_report parking charging_station photo",
    "weather": "forecast observation warning radar_image station air_quality pollen_report tide sunrise history",
}
VERBS: dict[str, tuple[str, dict[str, str]]] = {
    "create": (
        "Creates a new {thing} in {server} and returns it with its id. Fails if one with the same name exists already.",
        {"name": "Name or title of the {thing}", "description": "Longer text, Markdown is allowed",
         "owner": "Id of the user it belongs to", "tags": "Comma separated tags", "notify": "Tell those concerned"},
    ),
    "get": (
        "Returns one {thing} of {server} by its id, with all of its fields.",
        {"id": "Id of the {thing}", "fields": "Comma separated names of the fields to return; all if left out"},
    ),
    "list": (
        "Lists {server} {thing}s, newest first, one page at a time. Filter by state, owner or a text to search for.",
        {"query": "Text that the {thing} must contain", "state": "One of open, closed, all", "owner": "Id of a user",
         "since": "Only those changed after this time (RFC 3339)", "limit": "Entries of one page, at most 100",
         "cursor": "Where to go on, from the page before"},
    ),
    "update": (
        "Changes fields of a {thing} in {server}. Fields that are not given stay as they are.",
        {"id": "Id of the {thing}", "name": "New name or title", "description": "New text", "state": "New state",
         "owner": "Id of the new owner"},
    ),
    "delete": (
        "Deletes a {thing} from {server} for good. This cannot be undone.",
        {"id": "Id of the {thing}", "confirm": "Must be true"},
    ),
}  # fmt: skip


def catalogue(server: str) -> list[dict[str, Any]]:
    tools = []
    for thing in THINGS[server].split():
        for verb, (description, arguments) in VERBS.items():
            words = {"thing": thing.replace("_", " "), "server": server.capitalize()}
            properties = {
                name: {"type": "string", "description": text.format(**words)} for name, text in arguments.items()
            }
            required = [
                name for name in ("id", "name", "confirm") if name in arguments and (verb, name) != ("update", "name")
            ]
            schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
            name = f"{verb}_{thing}" + ("s" if verb == "list" else "")
            tools.append({"name": name, "description": description.format(**words), "inputSchema": schema})
    return tools


def answer_of(tool: str, arguments: dict[str, Any]) -> Any:
    """What a server answers: an object of some twelve fields, or a page of them."""
    verb, _, thing = tool.partition("_")

    def one(number: int) -> dict[str, Any]:
        return {
            "id": f"{thing.rstrip('s')}-{number}",
            "name": f"{thing.rstrip('s').replace('_', ' ')} number {number}",
            "state": "open" if number % 3 else "closed",
            "owner": f"user-{number % 7}",
            "amount": (number * 37) % 500,
            "late": number % 4 == 0,
            "customer": f"customer-{number % 5}",
            "created_at": f"2026-10-{number % 28 + 1:02d}T08:00:00Z",
            "updated_at": f"2026-11-{number % 28 + 1:02d}T09:30:00Z",
            "url": f"https://example.com/{thing.rstrip('s')}/{number}",
            "description": "What was agreed with them on the phone, and what is to be done next. " * 2,
            "tags": ["a", "b"],
        }

    if verb == "list":
        return {"items": [one(number) for number in range(int(arguments.get("limit", 20)))], "next_cursor": None}
    number = int((re.findall(r"\d+", str(arguments.get("id", ""))) or ["7"])[-1])
    return {"deleted": True} if verb == "delete" else one(number)


# ---- what is to be done
@dataclass
class Task:
    """find: what a model would search for, and the tools that it needs of that. calls: what it does with the whole
    catalogue or with search, given the answers so far: lists of calls, those of one list made in one turn. program:
    the same as a program."""

    words: str
    find: list[tuple[str, list[str]]]
    calls: list[Callable[[list[Any]], list[tuple[str, dict[str, Any]]]]]
    program: str
    answer: str = "Done: it is as you wanted it, and here is what I found in one or two sentences."


def fixed(*calls: tuple[str, dict[str, Any]]) -> Callable[[list[Any]], list[tuple[str, dict[str, Any]]]]:
    return lambda _: list(calls)


def _orders(seen: list[Any]) -> list[tuple[str, dict[str, Any]]]:
    return [("shopify__get_shipment", {"id": one["id"]}) for one in seen[0]["items"]]


TASKS = [
    Task(
        "Open an issue on GitHub that says the login page is broken.",
        [("create an issue on github", ["github__create_issue"])],
        [fixed(("github__create_issue", {"name": "Login page is broken", "description": "It shows a blank page."}))],
        "issue = call_tool('github__create_issue', name='Login page is broken', description='It shows a blank page.')\n"
        "print(issue['id'])",
    ),
    Task(
        "Will it rain tomorrow?",
        [("weather forecast", ["weather__get_forecast"])],
        [fixed(("weather__get_forecast", {"id": "berlin-1"}))],
        "print(call_tool('weather__get_forecast', id='berlin-1')['name'])",
    ),
    Task(
        "Who owns invoice 12, and what is that customer's newest order?",
        [("get a stripe invoice", ["stripe__get_invoice"]), ("list shopify orders", ["shopify__list_orders"])],
        [
            fixed(("stripe__get_invoice", {"id": "invoice-12"})),
            lambda seen: [("shopify__list_orders", {"query": seen[0]["customer"], "limit": "1"})],
        ],
        "invoice = call_tool('stripe__get_invoice', id='invoice-12')\n"
        "order = call_tool('shopify__list_orders', query=invoice['customer'], limit='1')['items'][0]\n"
        "print(invoice['owner'], order['id'])",
    ),
    Task(
        "Take ticket 4 in Jira, open a branch for it, put it into the sprint and tell the channel.",
        [
            ("get a jira ticket", ["jira__get_ticket"]),
            ("create a branch on github", ["github__create_branch"]),
            ("update a jira ticket", ["jira__update_ticket"]),
            ("send a slack message", ["slack__create_message"]),
        ],
        [
            fixed(("jira__get_ticket", {"id": "ticket-4"})),
            lambda seen: [("github__create_branch", {"name": seen[0]["id"]})],
            fixed(("jira__update_ticket", {"id": "ticket-4", "state": "in sprint"})),
            lambda seen: [("slack__create_message", {"name": f"{seen[0]['name']}: {seen[1]['url']}"})],
        ],
        "ticket = call_tool('jira__get_ticket', id='ticket-4')\n"
        "branch = call_tool('github__create_branch', name=ticket['id'])\n"
        "call_tool('jira__update_ticket', id='ticket-4', state='in sprint')\n"
        "call_tool('slack__create_message', name=f\"{ticket['name']}: {branch['url']}\")\n"
        "print(branch['id'])",
    ),
    Task(
        "How many of the last 20 orders have a late shipment, and how many have none?",
        [("list shopify orders", ["shopify__list_orders"]), ("shipment of an order", ["shopify__get_shipment"])],
        [fixed(("shopify__list_orders", {"limit": "20"})), _orders],
        "orders = call_tool('shopify__list_orders', limit='20')['items']\n"
        "told = call_tools([('shopify__get_shipment', {'id': o['id']}) for o in orders])\n"
        "late = sum(1 for one in told if one['value']['late'])\n"
        "print(late, len(told) - late)",
    ),
    Task(
        "What do the open invoices of Stripe add up to?",
        [("list stripe invoices", ["stripe__list_invoices"])],
        [fixed(("stripe__list_invoices", {"state": "open", "limit": "100"}))],
        "items = call_tool('stripe__list_invoices', state='open', limit='100')['items']\n"
        "print(sum(one['amount'] for one in items if one['state'] == 'open'))",
    ),
]
# A long talk: ten small things one after the other, each of another server.
_SMALL = [
    ("Read me the newest mail.", "list gmail messages", "gmail__list_messages", {"limit": "1"}),
    ("Is there a free slot tomorrow?", "find a free slot in the calendar", "calendar__list_free_slots", {"limit": "3"}),
    ("Write it down in Notion.", "create a notion page", "notion__create_page", {"name": "Meeting"}),
    ("Is the web pod healthy?", "get a kubernetes pod", "kubernetes__get_pod", {"id": "web-1"}),
    ("Silence that alert.", "create a silence in grafana", "grafana__create_silence", {"name": "disk"}),
    ("Which Sentry issue is the loudest?", "list sentry issues", "sentry__list_issues", {"limit": "5"}),
    ("Refund that payment.", "create a refund in stripe", "stripe__create_refund", {"name": "payment-3"}),
    ("How far is it to the office?", "distance on the map", "maps__get_distance", {"id": "office-1"}),
    ("Close that ticket.", "update a zendesk ticket", "zendesk__update_ticket", {"id": "ticket-9", "state": "closed"}),
    ("Make a lead of her.", "create a salesforce lead", "salesforce__create_lead", {"name": "Ada"}),
]  # fmt: skip

# The words of people, not of the catalogue: is the tool among the first five?
ASKED = [
    ("open a bug report on GitHub", "github__create_issue"),
    ("what pull requests are waiting on github", "github__list_pull_requests"),
    ("merge request details in gitlab", "gitlab__get_merge_request"),
    ("remove a gitlab tag", "gitlab__delete_tag"),
    ("post something to a slack channel", "slack__create_message"),
    ("react to a slack message", "slack__create_reaction"),
    ("write an email draft", "gmail__create_draft"),
    ("out of office reply", "gmail__create_vacation_reply"),
    ("book a meeting in my calendar", "calendar__create_event"),
    ("which meeting rooms are there", "calendar__list_rooms"),
    ("share a drive file with somebody: add a permission", "drive__create_permission"),
    ("upload a file to drive", "drive__create_upload"),
    ("search notion pages", "notion__list_pages"),
    ("add a property to a notion database", "notion__create_property"),
    ("new sales lead", "salesforce__create_lead"),
    ("opportunities in salesforce", "salesforce__list_opportunitys"),
    ("hubspot deal", "hubspot__get_deal"),
    ("give the customer his money back in stripe", "stripe__create_refund"),
    ("unpaid stripe invoices", "stripe__list_invoices"),
    ("cancel a subscription", "stripe__delete_subscription"),
    ("where is the parcel: shipments", "shopify__list_shipments"),
    ("how many do we have in stock: inventory", "shopify__list_inventory_levels"),
    ("customer support tickets in zendesk", "zendesk__list_tickets"),
    ("help center article", "zendesk__create_article"),
    ("run an sql query", "postgres__create_query"),
    ("database backups", "postgres__list_backups"),
    ("ec2 instances on aws", "aws__list_instances"),
    ("s3 bucket", "aws__create_bucket"),
    ("restart a kubernetes deployment", "kubernetes__update_deployment"),
    ("pods that are running", "kubernetes__list_pods"),
    ("show me a grafana dashboard", "grafana__get_dashboard"),
    ("mute alerts in grafana for an hour", "grafana__create_silence"),
    ("crash reports from sentry", "sentry__list_issues"),
    ("performance trace", "sentry__get_trace"),
    ("driving directions: route", "maps__get_route"),
    ("where can I charge my car", "maps__list_charging_stations"),
    ("is there a storm warning", "weather__list_warnings"),
    ("when does the sun rise", "weather__get_sunrise"),
    ("how clean is the air", "weather__get_air_quality"),
    ("log time on a jira ticket: worklog", "jira__create_worklog"),
]


HALVES = ("first", "second")
SIZES = (20, 40, 80, 160, 320)  # of smaller catalogues: where does it begin to be worth it?


def some(size: int) -> list[str]:
    """So many tools, those of the tasks among them, from all servers alike."""
    chosen = [name for task in TASKS for _, names in task.find for name in names] + [tool for _, _, tool, _ in _SMALL]
    every = [[f"{server}__{tool['name']}" for tool in catalogue(server)] for server in THINGS]
    chosen += [name for row in zip(*every, strict=True) for name in row]
    return list(dict.fromkeys(chosen))[:size]


# ---- the servers
class Servers:
    """All of them in one process, by their path. Streamable HTTP, stateless."""

    def __init__(self) -> None:
        self.lists = {server: {"tools": catalogue(server)} for server in THINGS}
        self.port = 0
        self.calls = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        ready = threading.Event()
        loop = asyncio.new_event_loop()
        stop = asyncio.Event()

        async def serve() -> None:
            listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.port = listener.sockets[0].getsockname()[1]
            ready.set()
            await stop.wait()
            listener.close()

        thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
        thread.start()
        ready.wait()
        try:
            yield
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(5)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = re.search(r"content-length: *(\d+)", head, re.IGNORECASE)
                body = json.loads(await reader.readexactly(int(length[1]))) if length else {}
                path = head.split(" ", 2)[1].strip("/")
                result = self._answer(path, body.get("method", ""), body.get("params", {}))
                if "id" not in body:
                    writer.write(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n")
                    continue
                data = json.dumps({"jsonrpc": "2.0", "id": body["id"], "result": result}).encode()
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                    % (len(data), data)
                )
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def _answer(self, server: str, method: str, params: dict[str, Any]) -> Any:
        common = {"resultType": "complete", "ttlMs": 3_600_000, "cacheScope": "public"}
        if method == "server/discover":
            return {**common, "supportedVersions": [REVISION], "capabilities": {"tools": {}},
                    "serverInfo": {"name": server, "version": "1"}}  # fmt: skip
        if method == "tools/list":
            return {**common, **self.lists[server]}
        self.calls += 1
        told = answer_of(params["name"], params.get("arguments", {}))
        return {"resultType": "complete", "content": [{"type": "text", "text": json.dumps(told)}]}


# ---- the gateway and an agent
def configuration(port: int, *, rules: bool = False) -> dict[str, Any]:
    """The whole catalogue at /mcp/all, searched at /mcp/search, and with programs at /mcp/code."""
    servers = list(THINGS)
    made: dict[str, Any] = {
        "server": {"listen": "127.0.0.1:0", "metrics": None, "admin": None},
        "mcp": {
            "servers": {name: {"url": f"http://127.0.0.1:{port}/{name}"} for name in servers},
            "endpoints": [
                {"path": "/mcp/all", "servers": servers},
                {"path": "/mcp/search", "servers": servers, "search": "on"},
                {"path": "/mcp/code", "servers": servers, "code_mode": True},
                *(
                    {"path": f"/mcp/{way}-{size}", "servers": servers, "tools": {"allow": some(size)}, **more}
                    for size in SIZES
                    for way, more in (("all", {}), ("search", {"search": "on"}), ("code", {"code_mode": True}))
                ),
            ],
        },
    }
    if rules:
        made["authorize"] = {"rules": [{"deny": 'mcp.tool.name == "delete_backup"'}]}
    return made


def public_api(where: Path) -> dict[str, Any]:
    """GitHub's API as tools, searched at /mcp. Nobody calls them."""
    document = where / "github.json"
    document.write_bytes(lzma.decompress(DOCUMENT.read_bytes()))
    servers = {"github": {"openapi": str(document), "base_url": "http://127.0.0.1:9"}}
    return {
        "server": {"listen": "127.0.0.1:0", "metrics": None, "admin": None},
        "mcp": {"search": "on", "servers": servers},
    }


class Gateway:
    """One that serves this configuration."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config
        self.url = ""
        self.pid = 0
        self._numbers = iter(range(1, 1 << 30))

    @contextmanager
    def running(self) -> Iterator["Gateway"]:
        with tempfile.TemporaryDirectory() as where:
            config, log = Path(where, "tollhouse.yaml"), Path(where, "log")
            config.write_text(json.dumps(self._config))
            with log.open("wb") as out:
                command = [sys.executable, "-m", "tollhouse.cli", "serve", str(config)]
                process = subprocess.Popen(command, stdout=out, stderr=out, cwd=where)
            try:
                while not (found := re.search(r"listening on (http\S+)", log.read_text())):
                    if process.poll() is not None:
                        raise RuntimeError(f"the gateway did not start:\n{log.read_text()}")
                    time.sleep(0.05)
                self.url, self.pid = found[1], process.pid
                yield self
            finally:
                process.terminate()
                process.wait()

    def ask(self, path: str, method: str, params: dict[str, Any]) -> Any:
        meta = {"io.modelcontextprotocol/protocolVersion": REVISION, "io.modelcontextprotocol/clientCapabilities": {}}
        body = {"jsonrpc": "2.0", "id": next(self._numbers), "method": method, "params": {**params, "_meta": meta}}
        headers = {"content-type": "application/json", "accept": "application/json, text/event-stream",
                   "mcp-protocol-version": REVISION, "mcp-method": method}  # fmt: skip
        if method == "tools/call":
            headers["mcp-name"] = params["name"]
        request = urllib.request.Request(f"{self.url}{path}", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            told = json.loads(answer.read())
        if "error" in told:
            raise RuntimeError(f"{method} {params.get('name', '')}: {told['error']}")
        return told["result"]

    def call(self, path: str, name: str, arguments: dict[str, Any]) -> str:
        result = self.ask(path, "tools/call", {"name": name, "arguments": arguments})
        text: str = result["content"][0]["text"]
        if result.get("isError"):
            raise RuntimeError(f"{name}: {text}")
        return text

    def cpu(self) -> float:
        """Seconds of the gateway's processor time."""
        fields = Path(f"/proc/{self.pid}/stat").read_bytes().rpartition(b")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


encode = bpe_openai.get_encoding("o200k_base").encode_ordinary


@dataclass
class Bill:
    """Of one task, or of several. turns: answers of the model. input: tokens of all requests to it; fresh: those that
    do not begin as an earlier request did, so that no cache has them. output: tokens it writes."""

    turns: int = 0
    calls: int = 0
    input: int = 0
    fresh: int = 0
    output: int = 0

    @property
    def weighted(self) -> float:
        return self.fresh + CACHED * (self.input - self.fresh)

    def __iadd__(self, other: "Bill") -> "Bill":
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self


@dataclass
class Talk:
    """What a model is sent: tools, and messages that grow. seen: the tokens of the request before."""

    tools: str
    messages: list[str] = field(default_factory=list)
    bill: Bill = field(default_factory=Bill)
    seen: list[int] = field(default_factory=list)

    def say(self, role: str, text: str) -> None:
        self.messages.append(json.dumps({"role": role, "content": text}, ensure_ascii=False))

    def turn(self, *said: str) -> None:
        """The model is asked, and says this: calls, or the last words."""
        tokens = encode(self.tools + "\n" + "\n".join(self.messages))
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(tokens, self.seen, strict=False)))
        self.seen = tokens
        self.bill.turns += 1
        self.bill.input += len(tokens)
        self.bill.fresh += len(tokens) - same
        self.bill.output += sum(len(encode(one)) for one in said)
        for one in said:
            self.say("assistant", one)


def as_call(name: str, arguments: dict[str, Any]) -> str:
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)


def tools_of(gateway: Gateway, path: str) -> str:
    """As a model gets them: names, descriptions and schemas."""
    listed = gateway.ask(path, "tools/list", {})["tools"]
    kept = [
        {"name": one["name"], "description": one["description"], "parameters": one["inputSchema"]} for one in listed
    ]
    return json.dumps(kept, ensure_ascii=False, separators=(",", ":"))


def look_for(gateway: Gateway, path: str, talk: Talk, task: Task, missed: list[str]) -> None:
    """All searches of a task in one turn; for what is not found, another turn by its exact name."""
    queries = [{"query": words} for words, _ in task.find]
    talk.turn(*(as_call("find_tools", query) for query in queries))
    lacking: list[str] = []
    for query, (_, wanted) in zip(queries, task.find, strict=True):
        told = gateway.call(path, "find_tools", query)
        talk.bill.calls += 1
        talk.say("tool", told)
        names = [one["name"] for one in json.loads(told)["tools"]]
        lacking += [name for name in wanted if name not in names]
    if lacking:
        missed.extend(lacking)
        again = [{"query": name.replace("_", " ")} for name in lacking]
        talk.turn(*(as_call("find_tools", query) for query in again))
        for query in again:
            talk.bill.calls += 1
            talk.say("tool", gateway.call(path, "find_tools", query))


def do(gateway: Gateway, way: str, path: str, talk: Talk, task: Task, known: set[str], missed: list[str]) -> None:
    """known: tools whose schemas are in the talk already."""
    talk.say("user", task.words)
    wanted = {name for _, names in task.find for name in names}
    if way != "all" and not wanted <= known:
        look_for(gateway, path, talk, task, missed)
        known |= wanted
    if way == "code":
        talk.turn(as_call("run_program", {"code": task.program}))
        talk.bill.calls += 1
        talk.say("tool", gateway.call(path, "run_program", {"code": task.program}))
    else:
        seen: list[Any] = []
        for step in task.calls:
            calls = step(seen)
            said = calls if way == "all" else [("call_tool", {"name": n, "arguments": a}) for n, a in calls]
            talk.turn(*(as_call(*one) for one in said))
            for name, arguments in said:
                told = gateway.call(path, name, arguments)
                talk.bill.calls += 1
                talk.say("tool", told)
                seen.append(json.loads(told))
    talk.turn(task.answer)


def small(words: str, query: str, tool: str, arguments: dict[str, Any]) -> Task:
    given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return Task(words, [(query, [tool])], [fixed((tool, arguments))], f"print(call_tool({tool!r}, {given}))")


WAYS = {"all": "whole catalogue", "search": "search", "code": "code mode"}


def measure(gateway: Gateway, size: str = "") -> tuple[dict[str, dict[str, Bill]], dict[str, int], list[str]]:
    """Bills by task and way; the tokens of each way's tools; what was not found at the first search. size: "" for all
    tools, or like "-40"."""
    bills: dict[str, dict[str, Bill]] = {}
    sizes: dict[str, int] = {}
    missed: list[str] = []
    for way in WAYS:
        path = f"/mcp/{way}{size}"
        tools = tools_of(gateway, path)
        sizes[way] = len(encode(tools))
        start = encode(tools + "\n")
        for task in TASKS:
            talk = Talk(tools, seen=start)  # many talks begin with the same tools: the cache has them
            do(gateway, way, path, talk, task, set(), missed)
            bills.setdefault(task.words, {})[way] = talk.bill
        talk, known = Talk(tools, seen=start), set[str]()
        for one in _SMALL:
            do(gateway, way, path, talk, small(*one), known, missed)
        bills.setdefault("One talk: ten small things, each of another server.", {})[way] = talk.bill
    return bills, sizes, missed


class Found(NamedTuple):
    """Of some wishes: part found first, among five, among ten; and what was not among ten."""

    wishes: int
    first: float
    five: float
    ten: float
    lost: list[str]


def recall(gateway: Gateway, path: str, wishes: Iterable[tuple[str, tuple[str, ...]]]) -> Found:
    """wishes: in people's words, with the names of the tools that do it."""
    at: list[int] = []
    lost = []
    for words, wanted in wishes:
        told = json.loads(gateway.call(path, "find_tools", {"query": words, "limit": 10}))
        names = [one["name"] for one in told["tools"]]
        at.append(min((names.index(tool) for tool in wanted if tool in names), default=99))
        if at[-1] == 99:
            lost.append(f"{words!r} ({wanted[0]})")
    first, five, ten = (sum(place < most for place in at) / len(at) for most in (1, 5, 10))
    return Found(len(at), first, five, ten, lost)


def listing_ms(gateway: Gateway, path: str, times: int = 300) -> tuple[float, int]:
    """Processor time of the gateway for one cached `tools/list`, in milliseconds; and how many tools that had."""
    listed = gateway.ask(path, "tools/list", {})["tools"]
    for _ in range(20):
        gateway.ask(path, "tools/list", {})
    before = gateway.cpu()
    for _ in range(times):
        gateway.ask(path, "tools/list", {})
    return (gateway.cpu() - before) / times * 1000, len(listed)


def report(
    bills: dict[str, dict[str, Bill]],
    sizes: dict[str, int],
    missed: list[str],
    found: dict[str, Found],
    lists: dict[str, tuple[float, int]],
    smaller: dict[int, tuple[dict[str, Bill], dict[str, int]]],
) -> str:
    tools = sum(map(len, map(catalogue, THINGS)))
    lines = [
        f"# Many tools: {len(THINGS)} servers, {tools:,} tools",
        "",
        "A scripted agent that always knows the next step; lists, searches, calls and programs through a gateway;",
        "tokens by o200k_base. Input is summed over all turns of a task. Fresh: not the beginning of an earlier",
        f"request. Weighted: fresh tokens, and cached ones at {CACHED:g}.",
        "",
        "| task | way | model turns | calls | input | fresh | weighted | output |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    total = {way: Bill() for way in WAYS}
    for words, by_way in bills.items():
        for way, bill in by_way.items():
            total[way] += bill
            lines.append(_row(words if way == "all" else "", WAYS[way], bill))
    for way, bill in total.items():
        lines.append(_row("**all**" if way == "all" else "", WAYS[way], bill))
    lines += [
        "",
        "The same tasks with fewer tools, all tasks together:",
        "",
        "| tools | their tokens | way | model turns | calls | input | fresh | weighted | output |",
        "|--:|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for size, (some_bills, tokens) in smaller.items():
        for way, bill in some_bills.items():
            head = f"{size} | {tokens['all']:,}" if way == "all" else " | "
            lines.append(_row(head, WAYS[way], bill))
    lines += [
        "",
        f"Tools in every request: {', '.join(f'{WAYS[way]} {size:,} tokens' for way, size in sizes.items())}.",
        f"Scripted searches that missed at first and were made again: {len(missed)}"
        + (f" ({', '.join(sorted(set(missed)))})." if missed else "."),
        "",
        "Search by words alone, for wishes in people's words. The first half chose the weights, the second did not:",
        "",
        "| catalogue | half | wishes | first | among five | among ten |",
        "|---|---|--:|--:|--:|--:|",
        *(
            f"| {name} | {one.wishes} | {one.first:.0%} | {one.five:.0%} | {one.ten:.0%} |"
            for name, one in found.items()
        ),
        "",
        "Not among ten: " + "; ".join(lost for one in found.values() for lost in one.lost) + ".",
        "",
        "`tools/list`, cached, processor time of the gateway: "
        + "; ".join(f"{name} {ms:.2f} ms ({count:,} tools)" for name, (ms, count) in lists.items())
        + ".",
    ]
    return "\n".join(lines) + "\n"


def _row(words: str, way: str, bill: Bill) -> str:
    counts = (bill.turns, bill.calls, bill.input, bill.fresh, round(bill.weighted), bill.output)
    return f"| {words} | {way} | {' | '.join(f'{count:,}' for count in counts)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", action="store_true", help="write the report to results/")
    parser.add_argument("--gate", action="store_true", help="exit with 1 when a promise is not kept")
    options = parser.parse_args()
    servers = Servers()
    found: dict[str, Found] = {}
    with servers.running():
        with Gateway(configuration(servers.port)).running() as gateway:
            bills, sizes, missed = measure(gateway)
            smaller = {}
            for size in SIZES:
                by_task, tokens, _ = measure(gateway, f"-{size}")
                sums = {way: Bill() for way in WAYS}
                for by_way in by_task.values():
                    for way, bill in by_way.items():
                        sums[way] += bill
                smaller[size] = (sums, tokens)
            for half in (0, 1):
                name = f"20 servers, 1,000 tools, made up | {HALVES[half]}"
                found[name] = recall(gateway, "/mcp/search", [(words, (tool,)) for words, tool in ASKED[half::2]])
            lists = {"whole": listing_ms(gateway, "/mcp/all"), "searched": listing_ms(gateway, "/mcp/search")}
        with Gateway(configuration(servers.port, rules=True)).running() as gateway:
            lists["whole, with a rule on names"] = listing_ms(gateway, "/mcp/all")
    with tempfile.TemporaryDirectory() as where, Gateway(public_api(Path(where))).running() as gateway:
        for half in (0, 1):
            found[f"GitHub's API, 1,222 tools | {HALVES[half]}"] = recall(gateway, "/mcp", GITHUB[half::2])
    text = report(bills, sizes, missed, found, lists, smaller)
    print(text)
    if options.keep:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"tools-{datetime.now(UTC).date()}.md"
        path.write_text(text)
        print(f"kept in {path}", file=sys.stderr)
    slow = [f"{name}: {ms:.2f} ms a list" for name, (ms, _) in lists.items() if ms > LIST_MS]
    if options.gate and slow:
        raise SystemExit(f"not within {LIST_MS:g} ms: {'; '.join(slow)}")


if __name__ == "__main__":
    main()
