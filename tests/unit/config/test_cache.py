"""`cache` in a configuration: what would have no effect, and what would give one user's answer to another."""

import pytest
from tests.unit.config.told import problems

EXACT = "{exact: {ttl: 1m}}"
MODELS = "providers: {p: {kind: openai, api_key: k}}\nmodels: [{name: m, targets: [{provider: p}]%s}]\n"
STATE = "state: 'redis://127.0.0.1:6379'\n"
SERVER = "mcp: {servers: {shop: {url: 'https://shop.example.com/mcp'%s}}}\n"
TOLD = "identity: on\nissuer: {url: 'http://127.0.0.1:8080', clients: [{id: a, secret: b}]}\n"
EXCHANGE = "exchange: {issuer: self}\nissuer: {url: 'http://127.0.0.1:8080', clients: [{id: a, secret: b}]}\n"


@pytest.mark.parametrize(
    "text",
    [
        MODELS % "" + f"cache: {EXACT}",
        MODELS % ", cache: off" + f"cache: {EXACT}",
        MODELS % ", cache: {exact: {ttl: 1m}, semantic: {ttl: 1m, model: m}}",
        SERVER % f", cache: {EXACT}, tools: {{x: {{cache: off}}}}",
        SERVER % ", cache: {exact: {ttl: 1m, scope: shared}}",
        MODELS % ", cache: {exact: {ttl: 1m, single_flight: {nodes: 1s, streams: 1s}}}" + STATE,
        MODELS % ", cache: {exact: {ttl: 1m, single_flight: false}}",
        SERVER % ", oauth: on, cache: {exact: {ttl: 1m, scope: key}}"
        + "issuer: {url: 'http://127.0.0.1:8080', users: [{name: a, password_hash: b}]}",
        SERVER % ", cache: {exact: {ttl: 1m}}" + TOLD,
        SERVER % ", identity: off, cache: {exact: {ttl: 1m, scope: shared}}" + TOLD,
    ],
)
def test_what_has_an_effect(text: str) -> None:
    assert [one for one in problems(text) if "cache" in one] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SERVER % "" + f"cache: {EXACT}", "cache: has no effect without `models`"),
        (MODELS % "" + "cache: off", "cache: has no effect: nothing is kept"),
        (MODELS % ", cache: off", "models[0].cache: has no effect: nothing wider"),
        (SERVER % ", cache: off", "mcp.servers.shop.cache: has no effect: nothing wider"),
        (SERVER % ", tools: {x: {cache: off}}", "mcp.servers.shop.tools.x.cache: has no effect: nothing wider"),
        (
            MODELS % ", cache: {exact: {ttl: 1m}, semantic: {ttl: 1m, model: n}}",
            "models[0].cache.semantic.model: there is no model `n`",
        ),
        (
            SERVER % ", oauth: on, cache: {exact: {ttl: 1m, scope: org}}",
            "mcp.servers.shop.cache.exact.scope: `org` would give users",
        ),
        (
            SERVER % ", tools: {x: {cache: {exact: {ttl: 1m, scope: shared}}}}" + EXCHANGE,
            "mcp.servers.shop.tools.x.cache.exact.scope: `shared` would give users",
        ),
        (
            SERVER % ", cache: {exact: {ttl: 1m, scope: shared}}" + TOLD,
            "mcp.servers.shop.cache.exact.scope: `shared` would give users",
        ),
        (
            SERVER % ", tools: {x: {cache: {exact: {ttl: 1m, scope: org}}}}" + TOLD,
            "mcp.servers.shop.tools.x.cache.exact.scope: `org` would give users",
        ),
        (
            MODELS % ", cache: {exact: {ttl: 1m, single_flight: {nodes: 1s}}}",
            "models[0].cache.exact.single_flight.nodes: has no effect: nodes know",
        ),
        (
            SERVER % ", tools: {x: {cache: {exact: {ttl: 1m, single_flight: {nodes: 1s}}}}}",
            "mcp.servers.shop.tools.x.cache.exact.single_flight.nodes: has no effect: nodes know",
        ),
        (
            SERVER % ", cache: {exact: {ttl: 1m, single_flight: {streams: 1s}}}",
            "mcp.servers.shop.cache.exact.single_flight.streams: ",
        ),
        (
            MODELS % ", cache: {exact: {ttl: 1m, single_flight: {mode: off, nodes: 1s}}}" + STATE,
            "models[0].cache.exact.single_flight: with `mode: off` nothing else",
        ),
        (MODELS % ", cache: on", "models[0].cache: write off, or what is kept"),
        (MODELS % ", cache: {exact: {ttl: 1m, ignore: [messages]}}", "models[0].cache.exact.ignore[0]: `messages`"),
        (MODELS % ", cache: {memory: 1MiB, exact: {ttl: 1m}}", "models[0].cache.memory: "),
        (SERVER % ", cache: {exact: {ttl: 1m}, semantic: {ttl: 1m}}", "mcp.servers.shop.cache.semantic: "),
    ],
)
def test_what_has_none_or_gives_too_much(text: str, said: str) -> None:
    assert [one[: len(said)] for one in problems(text) if "cache" in one] == [said]
