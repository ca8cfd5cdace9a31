"""The metric families of the gateway: every name, its labels and its buckets, in one table to read. What is declared is
fed.

Extra labels (config `telemetry.metrics.labels`) stand at the end of the request, gen_ai and mcp families. A label
value that comes from outside goes through `Bounded`, which lets so many different ones pass and no more.
"""

from collections.abc import Callable, Sequence
from typing import Any

from tollhouse.core.call import Context
from tollhouse.core.http import Request
from tollhouse.observe.metrics import OTHER, Count, Family, Gauge, Metrics, Spread

__all__ = ["SEED", "Bounded", "Expression", "ExtraLabels", "Families", "names_for"]

Expression = Callable[[Request, Context], Any]
"""A prepared expression of config: asked at the end of a request, gives a value or raises."""

REQUEST = (
    "backend", "protocol", "method", "status", "reason", "bind", "gateway", "listener", "route", "route_rule",
)  # fmt: skip
GEN_AI = ("gen_ai_operation_name", "gen_ai_system", "gen_ai_request_model", "gen_ai_response_model", "route")
CONNECTION = ("bind", "gateway", "listener", "protocol")


def _doubling(first: float, times: int) -> tuple[float, ...]:
    return tuple(first * 2**n for n in range(times))


SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
OVERHEAD = (5e-05, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0)
TOKENS = tuple(float(4**n) for n in range(14))  # to 67,108,864
MODEL_SECONDS = tuple(round(x, 2) for x in _doubling(0.01, 14))  # to 81.92
FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
CONNECT = tuple(round(x, 4) for x in _doubling(0.0005, 15))  # to 8.192
LAG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

SEED = {
    "config_updates_total": "agentgateway_xds_message_total",
    "config_bytes_total": "agentgateway_xds_message_bytes_total",
    "config_apply_duration_seconds": "kgateway_controller_reconcile_duration_seconds",
    "config_reconciliations_total": "kgateway_controller_reconciliations_total",
    "config_reconciliations_running": "kgateway_controller_reconciliations_running",
    "runtime_num_workers": "agentgateway_tokio_num_workers",
    "runtime_num_alive_tasks": "agentgateway_tokio_num_alive_tasks",
    "ratelimit_hits_total": "ratelimit_solo_io_total_hits",
    "ratelimit_over_limit_total": "ratelimit_solo_io_over_limit",
    "ratelimit_near_limit_total": "ratelimit_solo_io_near_limit",
}
"""Names that are more than another prefix under `telemetry.metrics.namespace: agentgateway`."""


def names_for(namespace: str) -> dict[str, str]:
    """The `names` of `Metrics` under this namespace."""
    return SEED if namespace == "agentgateway" else {}


class Bounded:
    """Lets `limit` different values pass, each up to `length` characters; every later one becomes "other".

    A value once seen keeps its place: a series must not change its name.
    """

    __slots__ = ("_length", "_limit", "_seen")

    def __init__(self, limit: int = 500, length: int = 128) -> None:
        self._limit = limit
        self._length = length
        self._seen: dict[str, str] = {}

    def __call__(self, value: str) -> str:
        known = self._seen.get(value)
        if known is not None:
            return known
        if len(value) > self._length:
            return self(value[: self._length])  # cut first: the table must not hold long values
        if len(self._seen) >= self._limit:
            return OTHER
        self._seen[value] = value
        return value


class ExtraLabels:
    """Labels from config: names, and for each an expression whose bounded value is the label."""

    __slots__ = ("_rows", "names")

    def __init__(self, labels: Sequence[tuple[str, Expression]] = (), *, limit: int = 500, length: int = 128) -> None:
        self.names = tuple(name for name, _ in labels)
        self._rows = tuple((ask, Bounded(limit, length)) for _, ask in labels)

    def values(self, request: Request, context: Context) -> tuple[str, ...]:
        """The values of one request; "" where there is none, or the expression fails on this request."""
        return tuple([bound(ask_text(ask, request, context)) for ask, bound in self._rows])


def ask_text(ask: Expression, request: Request, context: Context) -> str:
    """What the expression says, as text. It was compiled when config was read; that it fails on one request (no such
    header, no token) is usual and means there is no value."""
    try:
        value = ask(request, context)
    except Exception:  # noqa: BLE001 - an operator's expression over a caller's values: anything may go wrong in it
        return ""
    return value if isinstance(value, str) else "" if value is None else str(value)


class Families:
    """Every family, declared in `metrics`. Made once for each Snapshot: the same names give the same families."""

    def __init__(self, metrics: Metrics, extra: ExtraLabels | None = None) -> None:
        self.metrics = metrics
        self.extra = extra if extra is not None else ExtraLabels()
        more = self.extra.names
        counter, gauge, histogram = metrics.counter, metrics.gauge, metrics.histogram

        # Requests
        requests = (*REQUEST, *more)
        self.requests: Family[Count] = counter("requests_total", "Requests answered.", requests)
        self.request_duration: Family[Spread] = histogram(
            "request_duration_seconds", "From the request's head to the answer's last byte.", requests, SECONDS
        )
        self.response_bytes: Family[Count] = counter("response_bytes_total", "Bytes of answers' bodies.", requests)
        self.overhead: Family[Spread] = histogram(
            "gateway_overhead_seconds", "Time of a request that was ours and not the upstream's.", ("route",), OVERHEAD
        )
        self.retries: Family[Count] = counter(
            "retries_total", "Attempts after the first one.", ("route", "backend", "reason")
        )

        # Language models
        gen_ai = (*GEN_AI, *more)
        self.token_usage: Family[Spread] = histogram(
            "gen_ai_client_token_usage", "Tokens of a request, by kind.", ("gen_ai_token_type", *gen_ai), TOKENS
        )
        self.server_duration: Family[Spread] = histogram(
            "gen_ai_server_request_duration", "Seconds the model took for the whole answer.", gen_ai, MODEL_SECONDS
        )
        self.first_token: Family[Spread] = histogram(
            "gen_ai_server_time_to_first_token", "Seconds to a stream's first token.", gen_ai, FIRST_TOKEN
        )
        self.per_token: Family[Spread] = histogram(
            "gen_ai_server_time_per_output_token", "Seconds between a stream's tokens, mean.", gen_ai, PER_TOKEN
        )
        self.cost: Family[Count] = counter(
            "gen_ai_cost_usd_total",
            "What calls cost, in USD, as far as prices are known.",
            ("gen_ai_system", "gen_ai_request_model", "route", *(() if "org" in more else ("org",)), *more),
        )
        self.price_lookups: Family[Count] = counter(
            "gen_ai_price_lookups_total", "Calls that used tokens, by whether their price is known.", ("result",)
        )

        # Cache
        self.cache_requests: Family[Count] = counter(
            "cache_requests_total", "Requests that an answer might have been kept for.", ("kind", "result", "route")
        )
        self.cache_entries: Family[Gauge] = gauge("cache_entries", "Answers that are kept in memory.")
        self.cache_bytes: Family[Gauge] = gauge("cache_bytes", "Bytes that they take there.")
        self.cache_evictions: Family[Count] = counter(
            "cache_evictions_total", "Answers that had to go for others before their time."
        )
        self.cache_failures: Family[Count] = counter(
            "cache_state_failures_total",
            "What a shared state could not do for the cache: get, put, remove, slow, read (damaged), dropped.",
            ("operation",),
        )
        self.cache_compared: Family[Count] = counter(
            "cache_semantic_samples_total",
            "Answers found by meaning that were asked for all the same, by whether both say the same.",
            ("result",),
        )

        # MCP
        self.mcp_requests: Family[Count] = counter(
            "mcp_requests",
            "MCP requests, by JSON-RPC method.",
            ("method", "resource_type", "server", "resource", "route", *more),
        )
        self.mcp_duration: Family[Spread] = histogram(
            "mcp_call_duration_seconds",
            "From an MCP request to its answer.",
            ("server", "resource", "outcome", *more),
            SECONDS,
        )
        self.mcp_sessions: Family[Gauge] = gauge("mcp_sessions", "Open MCP sessions.", ("revision", "side"))
        self.mcp_recoveries: Family[Count] = counter(
            "mcp_session_recoveries_total",
            "Sessions with MCP servers that were lost and opened again, by why they were lost.",
            ("cause",),
        )
        self.integrity_tools: Family[Gauge] = gauge(
            "mcp_integrity_tools", "Tools that are not as they were approved.", ("server", "verdict"), merge="max"
        )
        self.integrity_refusals: Family[Count] = counter(
            "mcp_integrity_refusals_total", "Calls of tools in quarantine.", ("server", "verdict")
        )
        self.integrity_findings: Family[Count] = counter(
            "mcp_integrity_findings_total", "What scans found in tools that they act on.", ("server", "rule")
        )

        # Guardrails
        self.guardrail_checks: Family[Count] = counter(
            "guardrail_checks",
            "Calls that guards have looked at, by phase and by the strongest of what they did.",
            ("phase", "action"),
        )
        self.guardrail_findings: Family[Count] = counter(
            "guardrail_findings_total",
            "What guards have found, and what became of it (shadow: would have).",
            ("phase", "guard", "action", "shadow"),
        )
        self.guardrail_unable: Family[Gauge] = gauge(
            "guardrail_unable", "1 for a guard that could not run when it was asked last.", ("guard",), merge="max"
        )

        # Auth provider
        self.issuer_tokens: Family[Count] = counter(
            "issuer_tokens_total",
            "What the token endpoint has answered, by grant, and by the error where it was one.",
            ("grant", "outcome"),
        )
        self.issuer_reuse: Family[Count] = counter(
            "issuer_refresh_reuse_total", "Refresh tokens that came again and ended their grant.", ()
        )
        self.key_age: Family[Gauge] = gauge(
            "issuer_signing_key_age_seconds", "How long the active key has been signing.", merge="max"
        )
        self.key_left: Family[Gauge] = gauge(
            "issuer_signing_key_rotation_seconds", "Until the next key signs.", merge="min"
        )
        self.jwks_refreshes: Family[Count] = counter(
            "jwks_refreshes_total", "Readings of other issuers' and clients' keys.", ("outcome",)
        )
        self.replays: Family[Count] = counter(
            "replays_total", "What was shown again and counts once: proofs, assertions, codes.", ("kind",)
        )
        self.throttled: Family[Count] = counter(
            "logins_throttled_total", "Attempts to log in, or to prove who one is, that had to wait.", ("kind",)
        )
        self.revocations: Family[Gauge] = gauge(
            "revocations", "Tokens, users, clients, keys that are revoked and would still count.", merge="max"
        )
        self.revocation_lag: Family[Gauge] = gauge(
            "revocation_lag_seconds", "Since it was last read what others have revoked.", merge="max"
        )
        self.exchanges: Family[Count] = counter(
            "exchanges_total", "Tokens for upstreams: made, cached, refused to callers, failed.", ("result",)
        )
        self.accounts: Family[Count] = counter(
            "accounts_total",
            "Accounts of users at servers: connected, refreshed, refused, disconnected; and asked for by agents.",
            ("server", "outcome"),
        )

        # Connections
        self.connections: Family[Count] = counter("downstream_connections_total", "Connections of clients.", CONNECTION)
        self.received_bytes: Family[Count] = counter(
            "downstream_received_bytes_total", "Bytes from clients.", CONNECTION
        )
        self.sent_bytes: Family[Count] = counter("downstream_sent_bytes_total", "Bytes to clients.", CONNECTION)
        self.connections_open: Family[Gauge] = gauge(
            "downstream_connections_open", "Open connections of clients.", CONNECTION
        )
        self.connect_duration: Family[Spread] = histogram(
            "upstream_connect_duration_seconds", "Time to connect to an upstream.", ("transport",), CONNECT
        )
        self.tls_handshake: Family[Spread] = histogram(
            "tls_handshake_duration_seconds", "TLS handshakes of clients.", CONNECTION, CONNECT
        )

        # Limits
        self.limit_hits: Family[Count] = counter("ratelimit_hits_total", "Times a limit was asked.", ("descriptor",))
        self.limit_over: Family[Count] = counter(
            "ratelimit_over_limit_total", "Times a limit refused.", ("descriptor",)
        )
        self.limit_near: Family[Count] = counter(
            "ratelimit_near_limit_total", "Times a limit let something pass above 80 %.", ("descriptor",)
        )
        self.limit_unasked: Family[Count] = counter(
            "ratelimit_unasked_total",
            "Times a limit let something pass because the state was not available.",
            ("descriptor",),
        )
        self.provider_quota: Family[Count] = counter(
            "provider_quota_total",
            "Calls that asked for a share of what a provider allows (queued: admitted after a wait).",
            ("provider", "outcome"),
        )
        self.provider_quota_wait: Family[Spread] = histogram(
            "provider_quota_wait_seconds", "How long those have waited that were queued.", ("provider",), OVERHEAD
        )
        self.budget_checks: Family[Count] = counter(
            "budget_checks_total",
            "Calls that drew on a budget: admitted, warned, refused, fallback (asked another model), unasked (the "
            "state was not available).",
            ("budget", "outcome"),
        )
        self.budget_holds: Family[Gauge] = gauge("budget_holds", "Calls that hold something of a budget or limit.")
        self.budget_accounts: Family[Gauge] = gauge(
            "budget_accounts", "Accounts of budgets and runs that are kept in this process's memory."
        )
        self.budget_account_bytes: Family[Gauge] = gauge(
            "budget_account_bytes", "Bytes that they take there, at most; new ones are refused at 192 MiB."
        )
        self.budget_accounts_full: Family[Count] = counter(
            "budget_accounts_full_total", "Calls that were refused since there was no room for their account.", ()
        )
        self.budget_seeds: Family[Count] = counter(
            "budget_seeds_total", "Times that budgets were filled from the ledger: seeded, failed.", ("result",)
        )
        self.budget_doubts: Family[Count] = counter(
            "budget_doubtful_usage_total", "Calls whose provider told usage that cannot be: the bound was charged.", ()
        )
        self.budget_drift: Family[Count] = counter(
            "budget_drift_total",
            "Units (of money nano-dollars) by which spending was not what the ledger says, and was put right.",
            ("allowance",),
        )
        self.budget_reconciliations: Family[Count] = counter(
            "budget_reconciliations_total", "Times that budgets were compared with the ledger: ok, failed.", ("result",)
        )
        self.state_duration: Family[Spread] = histogram(
            "state_operation_duration_seconds",
            "What was asked of a shared state.",
            ("operation", "outcome"),
            OVERHEAD,
        )

        # Configuration
        source = ("source", "result")
        self.config_updates: Family[Count] = counter("config_updates_total", "Configurations that arrived.", source)
        self.config_bytes: Family[Count] = counter("config_bytes_total", "Their bytes.", source)
        self.config_apply: Family[Spread] = histogram(
            "config_apply_duration_seconds", "From a new configuration to the swap.", source, CONNECT
        )
        self.reconciliations: Family[Count] = counter(
            "config_reconciliations_total", "Runs of parse, build and swap.", source
        )
        self.reconciling: Family[Gauge] = gauge("config_reconciliations_running", "Runs under way.", ("source",))

        # Runtime
        worker = ("worker",)
        self.workers: Family[Gauge] = gauge("runtime_num_workers", "Worker processes.", worker)
        self.alive_tasks: Family[Gauge] = gauge("runtime_num_alive_tasks", "Tasks of the event loop.", worker)
        self.loop_lag: Family[Spread] = histogram(
            "runtime_loop_lag_seconds", "How much later than asked a timer ran.", worker, LAG
        )

        # Ledger and log
        kind_sink = ("kind", "sink")
        self.ledger_records: Family[Count] = counter("ledger_records_total", "Records written.", kind_sink)
        self.ledger_lag: Family[Gauge] = gauge(
            "ledger_lag_seconds", "Age of the oldest record not yet in the sink.", ("sink",), merge="max"
        )
        self.journal_bytes: Family[Gauge] = gauge("ledger_journal_bytes", "Bytes in the journal.", ("sink",))
        self.journal_limit: Family[Gauge] = gauge(
            "ledger_journal_limit_bytes", "Bytes that all journals of the ledger may have.", ("sink",), merge="max"
        )
        self.ledger_errors: Family[Count] = counter(
            "ledger_errors_total",
            "Records rejected or dropped, journal segments damaged, failed writes.",
            ("kind", "sink"),
        )
        self.log_dropped: Family[Count] = counter("access_log_dropped_total", "Access log lines lost to a slow disk.")

    def build_info(self, tag: str) -> None:
        self.metrics.info("build_info", "The version that runs.", {"tag": tag})
