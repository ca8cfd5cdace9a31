"""What operators and load balancers ask: is it alive, is it ready, what has it counted.

Rule: liveness says only that the process answers and whether it is leaving; readiness says whether it should get
traffic. Neither looks at upstreams: a provider's outage must not take the gateway out of its load balancer.
"""

from collections.abc import Callable, Mapping, Sequence

import msgspec

from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Request, Response
from tollhouse.ledger.journal import Journal
from tollhouse.observe.metrics import Metrics
from tollhouse.observe.share import Share

__all__ = ["Operations"]

_JSON = (b"content-type", b"application/json")
_FRESH = (b"cache-control", b"no-store")


class Operations:
    """State of a worker as it is seen from outside. ready, draining: set by the worker. alarm: of its journal."""

    def __init__(
        self,
        metrics: Metrics,
        share: Share | None = None,
        journal: Journal | None = None,
        alarm: Callable[[], str] = str,
    ) -> None:
        self._metrics = metrics
        self._share = share
        self._journal = journal
        self._alarm = alarm
        self.ready = False
        self.draining = False
        self.guards: Mapping[str, Sequence[Callable[[], str]]] = {}
        """Guards of the configuration that serves, by name: each says why it cannot run, "" where it can."""

    async def status(self, request: Request) -> Response:
        """`GET /status`: 200 `{"status":"ok"}`, and 503 `{"status":"draining"}` once the worker is leaving. `journal`
        is there as well while records wait that should not: filling, full or dropping; and `guardrails`, the names of
        guards that cannot run."""
        unable = sorted(name for name, guards in self.guards.items() if any(health() for health in guards))
        if self.draining:
            return _state(503, "draining", self._alarm(), unable)
        return _state(200, "ok", self._alarm(), unable)

    async def readiness(self, request: Request) -> Response:
        """`GET /ready`: 200 while new requests are welcome; 503 with the reason otherwise."""
        if self.draining:
            return _state(503, "draining")
        if not self.ready:
            return _state(503, "starting")
        if self._journal is not None and self._journal.full:
            return _state(503, "ledger full")
        return _state(200, "ready")

    async def serve_metrics(self, request: Request) -> Response:
        """The handler of the metrics listener."""
        path = request.path
        if request.method not in (b"GET", b"HEAD"):
            raise Failure(
                405, Reason.INVALID_REQUEST, "only GET is understood here", headers=((b"allow", b"GET, HEAD"),)
            )
        if path == b"/metrics":
            accept = (request.header(b"accept") or b"").decode("latin-1")
            kind, body = (self._share or self._metrics).render(accept)
            return Response(200, [(b"content-type", kind.encode()), _FRESH], body)
        if path == b"/status":
            return await self.status(request)
        if path == b"/ready":
            return await self.readiness(request)
        raise Failure(404, Reason.NOT_FOUND, "here are /metrics, /ready and /status")


def _state(status: int, word: str, journal: str = "", guardrails: Sequence[str] = ()) -> Response:
    said: dict[str, object] = {"status": word}
    if journal:
        said["journal"] = journal
    if guardrails:
        said["guardrails"] = guardrails
    return Response(status, [_JSON, _FRESH], msgspec.json.encode(said))
