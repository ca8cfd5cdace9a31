"""observe.families: the contract of names, labels and buckets; and what bounds labels from outside."""

from typing import Any

import pytest

from tollhouse.core.call import Context
from tollhouse.core.http import Headers, Request
from tollhouse.observe.families import Bounded, ExtraLabels, Families, names_for
from tollhouse.observe.metrics import OTHER, Family, Metrics

REQUEST = "backend protocol method status reason bind gateway listener route route_rule"
GEN_AI = "gen_ai_operation_name gen_ai_system gen_ai_request_model gen_ai_response_model route"
CONNECTION = "bind gateway listener protocol"

CONTRACT = [
    ("requests_total", "counter", REQUEST, None),
    ("request_duration_seconds", "histogram", REQUEST, (0.001, 80)),
    ("response_bytes_total", "counter", REQUEST, None),
    ("gateway_overhead_seconds", "histogram", "route", (0.00005, 1)),
    ("retries_total", "counter", "route backend reason", None),
    ("gen_ai_client_token_usage", "histogram", f"gen_ai_token_type {GEN_AI}", (1, 4**13)),
    ("gen_ai_server_request_duration", "histogram", GEN_AI, (0.01, 81.92)),
    ("gen_ai_server_time_to_first_token", "histogram", GEN_AI, (0.001, 10)),
    ("gen_ai_server_time_per_output_token", "histogram", GEN_AI, (0.001, 2.5)),
    ("gen_ai_cost_usd_total", "counter", "gen_ai_system gen_ai_request_model route org", None),
    ("gen_ai_price_lookups_total", "counter", "result", None),
    ("mcp_requests", "counter", "method resource_type server resource route", None),
    ("mcp_call_duration_seconds", "histogram", "server resource outcome", None),
    ("mcp_sessions", "gauge", "revision side", None),
    ("mcp_session_recoveries_total", "counter", "cause", None),
    ("issuer_tokens_total", "counter", "grant outcome", None),
    ("issuer_signing_key_age_seconds", "gauge", "", None),
    ("issuer_signing_key_rotation_seconds", "gauge", "", None),
    ("jwks_refreshes_total", "counter", "outcome", None),
    ("replays_total", "counter", "kind", None),
    ("logins_throttled_total", "counter", "kind", None),
    ("revocations", "gauge", "", None),
    ("revocation_lag_seconds", "gauge", "", None),
    ("issuer_refresh_reuse_total", "counter", "", None),
    ("exchanges_total", "counter", "result", None),
    ("accounts_total", "counter", "server outcome", None),
    ("downstream_connections_total", "counter", CONNECTION, None),
    ("downstream_received_bytes_total", "counter", CONNECTION, None),
    ("downstream_sent_bytes_total", "counter", CONNECTION, None),
    ("upstream_connect_duration_seconds", "histogram", "transport", (0.0005, 8.192)),
    ("tls_handshake_duration_seconds", "histogram", CONNECTION, (0.0005, 8.192)),
    ("config_updates_total", "counter", "source result", None),
    ("config_bytes_total", "counter", "source result", None),
    ("config_apply_duration_seconds", "histogram", "source result", None),
    ("config_reconciliations_total", "counter", "source result", None),
    ("runtime_num_workers", "gauge", "worker", None),
    ("runtime_num_alive_tasks", "gauge", "worker", None),
    ("runtime_loop_lag_seconds", "histogram", "worker", None),
    ("ratelimit_hits_total", "counter", "descriptor", None),
    ("ratelimit_over_limit_total", "counter", "descriptor", None),
    ("ratelimit_near_limit_total", "counter", "descriptor", None),
    ("ledger_records_total", "counter", "kind sink", None),
    ("ledger_lag_seconds", "gauge", "sink", None),
    ("ledger_journal_bytes", "gauge", "sink", None),
]


def declared(families: Families) -> dict[str, Family[Any]]:
    return {f.name: f for f in vars(families).values() if isinstance(f, Family)}


@pytest.mark.parametrize(("name", "kind", "labels", "span"), CONTRACT, ids=[row[0] for row in CONTRACT])
def test_contract(name: str, kind: str, labels: str, span: tuple[float, float] | None) -> None:
    family = declared(Families(Metrics()))[f"tollhouse_{name}"]
    assert family.kind == kind
    assert family.labels == tuple(labels.split())
    if span is not None:
        assert (family.bounds[0], family.bounds[-1]) == pytest.approx(span)


def test_names_of_the_seed() -> None:
    families = declared(Families(Metrics("agentgateway", names=names_for("agentgateway"))))
    assert {
        "agentgateway_requests_total",
        "agentgateway_mcp_requests",
        "agentgateway_xds_message_total",
        "agentgateway_tokio_num_workers",
        "kgateway_controller_reconciliations_total",
        "ratelimit_solo_io_over_limit",
    } <= set(families)
    assert names_for("tollhouse") == {}


def test_made_again_for_the_next_snapshot() -> None:
    metrics = Metrics()
    assert Families(metrics).requests is Families(metrics).requests


def test_extra_labels_stand_at_the_end_of_three_groups() -> None:
    extra = ExtraLabels([("org", lambda r, c: "o"), ("product", lambda r, c: None)])
    families = Families(Metrics(), extra)
    for family in (families.requests, families.token_usage, families.mcp_requests, families.mcp_duration):
        assert family.labels[-2:] == ("org", "product")
    assert families.retries.labels[-1] == "reason"


def test_extra_values() -> None:
    def fails(request: Request, context: Context) -> str:
        raise KeyError("x-org")

    request = Request(b"GET", b"/", Headers([(b"x-org", b"shop")]))
    extra = ExtraLabels(
        [
            ("org", lambda r, c: (r.header(b"x-org") or b"").decode()),
            ("bad", fails),
            ("none", lambda r, c: None),
            ("number", lambda r, c: 5),
            ("long", lambda r, c: "x" * 1000),
        ]
    )
    assert extra.values(request, request.context) == ("shop", "", "", "5", "x" * 128)


def test_bounded() -> None:
    bounded = Bounded(limit=3, length=4)
    assert [bounded(v) for v in ("a", "b", "abcdefgh", "c", "a", "abcdxyz", "d")] == [
        "a", "b", "abcd", OTHER, "a", "abcd", OTHER,
    ]  # fmt: skip
