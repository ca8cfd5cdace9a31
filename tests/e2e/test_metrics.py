"""What is declared is fed: one gateway does some of everything, and its scrape has a sample of each family."""

import re
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from tests.fixtures.gateway import serving
from tests.fixtures.provider import provider
from tests.fixtures.wire import once

from tollhouse.observe.families import Families
from tollhouse.observe.metrics import Family, Metrics

pytestmark = pytest.mark.anyio

CONFIG = """
server: {{listen: 127.0.0.1:0, metrics: 127.0.0.1:0}}
ledger: sqlite:tollhouse.db
telemetry: {{access_log: {{path: access.log}}}}
providers:
  up:
    kind: openai
    base_url: "http://127.0.0.1:{port}/v1"
    api_key: key-of-ours
    quota: {{limits: [{{requests: 1000}}]}}
models:
  - {{name: ok, targets: [{{provider: up}}], cache: {{exact: {{ttl: 1m, scope: shared}}}}}}
  - {{name: "500", targets: [{{provider: up}}], retry: {{attempts: 2, backoff: 1ms}}}}
mcp: {{servers: {{demo: {{command: {python}, args: [-m, tollhouse.demo]}}}}}}
authorize: {{rules: [{{deny: 'request.path == "/none"'}}]}}
limits: [{{per: ip, requests: 1000, window: 1h}}]
budgets: [{{per: all, calls: 1000, window: day}}]
guardrails: {{request: [{{regex: "x+", action: flag}}]}}
issuer:
  url: http://127.0.0.1:1
  resources: [{{uri: "https://api.example.com"}}]
  clients: [{{id: agent-1, secret: 0123456789abcdef0123456789abcdef, grants: [client_credentials]}}]
"""
TOKEN = (
    b"grant_type=client_credentials&client_id=agent-1&client_secret=0123456789abcdef0123456789abcdef"
    b"&resource=https%3A%2F%2Fapi.example.com"
)
INITIALIZE = (
    b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{}}}'
)
CALL = b'{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"echo","arguments":{"message":"x"}}}'

ELSEWHERE = {
    "tollhouse_accounts_total",  # with users' accounts at servers: test_accounts
    "tollhouse_jwks_refreshes_total",  # these with issuers elsewhere, and who shows things twice: test_identity_metrics
    "tollhouse_logins_throttled_total",
    "tollhouse_replays_total",
    "tollhouse_exchanges_total",  # which needs callers with tokens: test_exchange
    "tollhouse_gen_ai_cost_usd_total",  # prices
    "tollhouse_guardrail_unable",  # with a guard that is asked and fails: test_guard_checks
    "tollhouse_cache_state_failures_total",  # these with a shared state, and with answers by meaning: test_cache
    "tollhouse_cache_semantic_samples_total",
    "tollhouse_provider_quota_wait_seconds",  # with who waits: unit/backends/test_quota
    "tollhouse_mcp_integrity_tools",  # and these, with pins: test_tool_integrity
    "tollhouse_mcp_integrity_findings_total",
    "tollhouse_mcp_integrity_refusals_total",
    "tollhouse_mcp_session_recoveries_total",  # with a server that dies
    "tollhouse_state_operation_duration_seconds",  # with a shared state: test_state
}


async def test_each_family_has_a_sample(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        models = await stack.enter_async_context(provider())
        config = CONFIG.format(port=models.port, python=sys.executable)
        gateway = await stack.enter_async_context(serving(config, tmp_path))
        headers = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
        for model, stream, status in (("ok", "false", 200), ("ok", "true", 200), ("500", "false", 502)):
            said = b'[{"role":"user","content":"x"}]'
            body = b'{"model":"%b","stream":%b,"messages":%b}' % (model.encode(), stream.encode(), said)
            assert (await once(gateway.url, "POST", "/v1/chat/completions", body, headers)).status == status
        opened = await once(gateway.url, "POST", "/mcp", INITIALIZE, headers)
        session = {"mcp-session-id": opened.headers["mcp-session-id"], "mcp-protocol-version": "2025-11-25"}
        assert b'"result"' in (await once(gateway.url, "POST", "/mcp", CALL, headers | session)).body
        form = {"content-type": "application/x-www-form-urlencoded"}
        assert b'"access_token"' in (await once(gateway.url, "POST", "/oauth/token", TOKEN, form)).body
        await gateway.change(config.replace("1000", "1001"))
        scraped = await once(gateway.metrics_url, "GET", "/metrics")
        sample = re.compile(r"^(tollhouse_\w+?)(?:_bucket|_sum|_count)?[{ ]", re.MULTILINE)
        found = set(sample.findall(scraped.body.decode()))
        declared = {family.name for family in vars(Families(Metrics())).values() if isinstance(family, Family)}
        assert declared - found - ELSEWHERE == set()
