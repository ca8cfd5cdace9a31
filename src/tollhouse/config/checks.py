"""What must hold between settings of different places, and what would have no effect.

Rule: every check looks at what is right so far and skips what was found to be wrong, so that one mistake is one
problem. A check gives the path of the setting to change.
"""

from collections.abc import Collection, Iterator
from typing import Any, Final

from tollhouse.config.account_checks import of_accounts
from tollhouse.config.budget_checks import of_budgets
from tollhouse.config.cache_checks import of_cache
from tollhouse.config.exchange_checks import of_identity, of_routes, of_servers
from tollhouse.config.guard_checks import of_guardrails
from tollhouse.config.ledger_checks import of_ledger
from tollhouse.config.places import Path, render
from tollhouse.config.run_checks import of_runs
from tollhouse.config.spec import Config, RouteSpec
from tollhouse.config.suggest import did_you_mean
from tollhouse.config.wording import Finding
from tollhouse.config.written import Written, scopes
from tollhouse.issuer.spec import IssuerSpec
from tollhouse.policies.authenticate import KeySpec
from tollhouse.wire.mcp.names import split

__all__ = ["check", "check_names"]

_MANY: Final = 20  # problems of one kind that are told one by one
_BY_USERS: Final = frozenset(("authorization_code", "refresh_token", "device_code"))
_WITHOUT_LIST: Final = frozenset(("bedrock", "vertex"))
"""Kinds of providers whose models are listed elsewhere, or not at all."""


def check(config: Config, raw: dict[str, Any], left_out: Collection[Path]) -> list[Finding]:
    """The findings about `config`, whose values are those of `raw` without what stands at `left_out`."""
    place = Written(raw, left_out)
    return [
        found
        for each in (
            _models,
            _routes,
            _listeners,
            _public_url,
            _hosts,
            _keys,
            _callers,
            _workers,
            _legacy_sse,
            _mcp_endpoints,
            _approvals,
            _alternates,
            _on_store_failure,
            _retries,
            _metrics,
            _issuer,
            _state_file,
            _audit,
            of_servers,
            of_routes,
            of_identity,
            of_accounts,
            of_guardrails,
            of_ledger,
            of_budgets,
            of_cache,
            of_runs,
        )
        for found in each(config, place)
        if not place.touched(found.path)
    ]


def check_names(raw: dict[str, Any], left_out: Collection[Path]) -> list[Finding]:
    """The findings about names that are given twice, and about those that nothing has.

    They are looked for in what was written, because an entry that has another mistake is not in the Config.
    """
    wrong = frozenset(left_out)
    return [found for each in (_given_twice, _targets) for found in each(raw, wrong) if found.path not in wrong]


def _given_twice(raw: dict[str, Any], wrong: Collection[Path]) -> Iterator[Finding]:
    for kind in ("models", "routes"):
        seen: dict[str, int] = {}
        for n, entry in _mappings(raw.get(kind)):
            path: Path = (kind, n, "name")
            name = entry.get("name")
            if isinstance(name, str) and path not in wrong:
                first = seen.setdefault(name, n)
                if first != n:
                    yield Finding(path, f"{kind}[{first}] has the name `{name}` already", near=name)
    names: dict[str, str] = {}
    for n, entry in _mappings(raw.get("models")):
        if isinstance(name := entry.get("name"), str):
            names.setdefault(name, f"models[{n}]")
    for n, entry in _mappings(raw.get("models")):
        aliases = entry.get("aliases")
        for a, alias in enumerate(aliases if isinstance(aliases, list) else ()):
            path = ("models", n, "aliases", a)
            if isinstance(alias, str) and path not in wrong:
                if alias in names:
                    yield Finding(path, f"{names[alias]} has the name `{alias}` already", near=alias)
                names.setdefault(alias, f"models[{n}]")


def _targets(raw: dict[str, Any], wrong: Collection[Path]) -> Iterator[Finding]:
    written = raw.get("providers")
    providers = list(written) if isinstance(written, dict) else []
    known = frozenset(providers)
    for n, model in _mappings(raw.get("models")):
        name = model.get("name")
        exact = isinstance(name, str) and "*" not in name and ("models", n, "name") not in wrong
        for kind in ("targets", "fallback"):
            for t, target in _mappings(model.get(kind)):
                at: Path = ("models", n, kind, t)
                provider, there = target.get("provider"), target.get("model")
                if isinstance(provider, str) and provider not in known:
                    yield Finding((*at, "provider"), _no_provider(provider, providers), near=provider)
                if exact and isinstance(there, str) and "*" in there:
                    message = f"`*` stands for what a `*` in the name matched, and `{name}` has none"
                    yield Finding((*at, "model"), message, near=name)


def _mappings(value: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """The mappings in what should be a list of them, each with its number."""
    if isinstance(value, list):
        yield from ((n, entry) for n, entry in enumerate(value) if isinstance(entry, dict))


def _models(config: Config, place: Written) -> Iterator[Finding]:
    for path, model in place.numbered(("models",), config.models):
        if len(model.targets) == 1:
            for name in ("balance", "sticky", "hedge"):
                if name in model.model_fields_set:
                    yield Finding((*path, name), "has no effect with a single target; leave it out", key=True)
        check = model.health.check
        asked = [config.providers.get(t.provider) for t in (*model.targets, *model.fallback)]
        kinds = [provider.kind for provider in asked if provider is not None]
        if check is not None and kinds and all(kind == "local" for kind in kinds):
            message = "has no effect: the local model runs in a process of our own, which is looked after; leave it out"
            yield Finding((*path, "health", "check"), message, key=True)
        elif check is not None and check.model_call is None and check.path is None:
            for kind in sorted(_WITHOUT_LIST.intersection(kinds)):
                message = f"a provider of kind {kind} has no list of models to look at; say `model_call`, or a `path`"
                yield Finding((*path, "health", "check"), message, key=True)
        elif check is not None and check.model_call is not None and "*" in model.name:
            targets = (*model.targets, *model.fallback)
            known = [config.providers.get(t.provider) for t in targets if t.model is None or "*" in t.model]
            if any(provider is not None and provider.kind != "local" for provider in known):
                message = f"asks for one model, and what `{model.name}` stands for is not known; name targets' models"
                yield Finding((*path, "health", "check", "model_call"), message, key=True)


def _no_provider(name: str, providers: list[str]) -> str:
    hint = did_you_mean(name, providers)
    if not hint and providers:
        shown = ", ".join(providers[:_MANY]) + (", ..." if len(providers) > _MANY else "")
        hint = f"; there are: {shown}"
    return f"there is no provider `{name}`{hint}" + ("" if providers else "; name it under `providers`")


def _routes(config: Config, place: Written) -> Iterator[Finding]:
    conditions: dict[Any, Path] = {}
    for path, route in place.numbered(("routes",), config.routes):
        assert isinstance(route, RouteSpec)
        predicate = route.compile()
        key = (predicate.exact, predicate.path, frozenset(predicate.hosts), predicate.methods, predicate.conditions)
        same = conditions.setdefault(key, path)
        if same != path:
            yield Finding(path, f"is for the same requests as {render(same)}, so it would never be reached")


def _listeners(config: Config, place: Written) -> Iterator[Finding]:
    if place.touched(("server", "listen")):
        return
    server = config.server
    written = place.raw.get("server")
    several = isinstance(written, dict) and isinstance(written.get("listen"), list)
    # An issuer alone is for everybody.
    guards = bool(config.models or config.mcp or config.routes or config.issuer is None)
    is_open = guards and config.authenticate is None and not place.touched(("authenticate",))
    seen: set[str] = set()
    for n, listener in enumerate(server.listen):
        path: Path = ("server", "listen", n) if several else ("server", "listen")
        address = listener.address
        if is_open and not listener.is_loopback:
            message = (
                f"everybody who reaches {address} could call; say who may with `authenticate` "
                "(`mode: optional` lets everybody in), or listen on 127.0.0.1"
            )
            yield Finding(path, message, near=address)
        if address in seen and not address.endswith(":0"):
            yield Finding(path, f"{address} is listened on already", near=address)
        seen.add(address)
    if server.metrics is not None and server.metrics in seen and not server.metrics.endswith(":0"):
        yield Finding(("server", "metrics"), f"{server.metrics} is listened on already", near=server.metrics)


def _public_url(config: Config, place: Written) -> Iterator[Finding]:
    """A resource's metadata names the address that agents call; of several the gateway cannot know which."""
    server, mcp = config.server, config.mcp
    if mcp is None or config.authenticate is None or server.public_url is not None:
        return
    if not config.authenticate.takes_tokens:
        return
    every = next((one.address for one in server.listen if one.is_every), "")
    if (every or len(server.listen) > 1) and not place.touched(("server", "listen")):
        message = (
            f"required: agents trust the metadata of {mcp.path} if it names the address that they call (RFC 9728), "
            f"and {f'{every} is none' if every else 'there are several'}; write it like https://gateway.example.com"
        )
        yield Finding(("server", "public_url"), message, near=every)


def _hosts(config: Config, place: Written) -> Iterator[Finding]:
    if not config.server.hosts:
        return
    at: Path = ("server", "hosts")
    who = config.authenticate
    if who is not None and who.mode == "strict" and not place.touched(("authenticate",)):
        message = "has no effect: callers need a credential, which web pages do not have; leave it out"
        yield Finding(at, message, key=True)
    elif not any(one.is_loopback for one in config.server.listen) and not place.touched(("server", "listen")):
        yield Finding(at, "has no effect: no listener is of this machine alone; leave it out", key=True)
    elif not (config.models or config.mcp) and not place.touched(("models",)) and not place.touched(("mcp",)):
        yield Finding(at, "has no effect on `routes`, which say their own `host`; leave it out", key=True)


def _keys(config: Config, place: Written) -> Iterator[Finding]:
    """A name stands for one caller, whose limits, records and MCP sessions are one."""
    seen: dict[str, tuple[Path, KeySpec]] = {}
    for scope_path, scope in scopes(config, place):
        authenticate = getattr(scope, "authenticate", None)
        written: Path = (*scope_path, "authenticate", "keys")
        for path, key in place.numbered(written, authenticate.keys if authenticate is not None else ()):
            first, other = seen.setdefault(key.name, (path, key))
            if (key.digest, key.user) != (other.digest, other.user):
                what = "another key" if key.digest != other.digest else "another user"
                message = f"{render(first)} has the name `{key.name}` with {what}; a name stands for one caller"
                yield Finding((*path, "name"), message, near=key.name)


def _callers(config: Config, place: Written) -> Iterator[Finding]:
    """Who may call, where nobody could; and keys that are nowhere."""
    for scope_path, scope in scopes(config, place):
        who = getattr(scope, "authenticate", None)
        at: Path = (*scope_path, "authenticate")
        if who is None or place.touched(at):
            continue
        if who.mode == "strict" and not who.knows_anybody and config.issuer is None:
            message = "nobody could call: give `keys`, `jwt` or another kind of credential, or write `mode: optional`"
            yield Finding(at, message)
        if who.issued and config.ledger is None and not place.touched(("ledger",)):
            message = "has no effect without `ledger`, where these keys live; name one, like sqlite:tollhouse.db"
            yield Finding((*at, "issued"), message, key=True)
        if who.mtls is not None and who.mtls.header is None:
            listeners = config.server.listen
            if not any(one.tls is not None and one.tls.client_ca for one in listeners):
                message = "no listener asks for certificates; give one `tls.client_ca`, or name the proxies' `header`"
                if not place.touched(("server", "listen")):
                    yield Finding((*at, "mtls"), message, key=True)
        if who.mtls is not None and who.mtls.header is not None and not config.server.trusted_proxies:
            message = "is believed from trusted proxies only; name them in `server.trusted_proxies`"
            yield Finding((*at, "mtls", "header"), message, key=True)
        if who.oidc is not None and not config.routes:
            yield Finding((*at, "oidc"), "has no effect without `routes`, whose pages people log in for", key=True)


def _workers(config: Config, place: Written) -> Iterator[Finding]:
    if config.server.workers == 1 or not config.state.is_memory:
        return
    if place.touched(("server", "workers")) or place.touched(("state",)):
        return
    at: Path = ("server", "workers")
    until = "which several workers do not share in memory; name a server in `state`, set workers to 1, or leave"
    if config.mcp is not None and config.mcp.servers:
        yield Finding(at, f"MCP servers have sessions, {until} `mcp` out")
    limited = [render((*path, "limits")) for path, scope in scopes(config, place) if getattr(scope, "limits", None)]
    if limited:
        where = ", ".join(f"`{one}`" for one in limited[:3]) + (", ..." if len(limited) > 3 else "")
        yield Finding(at, f"limits are counts, {until} {where} out")
    spent = [render((*path, "budgets")) for path, scope in scopes(config, place) if getattr(scope, "budgets", None)]
    if spent:
        yield Finding(at, f"budgets are counts, {until} `{spent[0]}` out")


def _approvals(config: Config, place: Written) -> Iterator[Finding]:
    at: Path = ("authorize", "approvals")
    if not place.has(*map(str, at)):
        return
    guards = [getattr(scope, "authorize", None) for _, scope in scopes(config, place)]
    if not any(rule.approve for guard in guards if guard is not None for rule in guard.rules):
        yield Finding(at, "has no effect: no rule says `approve`; leave it out", key=True)


def _mcp_endpoints(config: Config, place: Written) -> Iterator[Finding]:
    mcp = config.mcp
    if mcp is None:
        return
    taken = {mcp.path: "`mcp.path`"} | {f"{mcp.path}/{name}": f"the server `{name}` alone" for name in mcp.servers}
    if isinstance(mcp.rest, str) and mcp.rest in taken:
        yield Finding(("mcp", "rest"), f"is the path of {taken[mcp.rest]} already", near=mcp.rest)
    if mcp.rest:
        taken.setdefault("/tools" if mcp.rest is True else mcp.rest, "`mcp.rest`")
    for path, endpoint in place.numbered(("mcp", "endpoints"), mcp.endpoints):
        if endpoint.path in taken:
            yield Finding((*path, "path"), f"is the path of {taken[endpoint.path]} already", near=endpoint.path)
        taken.setdefault(endpoint.path, f"`{render(path)}`")
        for n, name in enumerate(endpoint.servers):
            at: Path = (*path, "servers", n)
            if name in endpoint.servers[:n]:
                yield Finding(at, f"`{name}` stands here twice", near=name)
            elif name not in mcp.servers and not place.touched(("mcp", "servers")):
                hint = did_you_mean(name, list(mcp.servers))
                yield Finding(at, f"there is no MCP server `{name}`{hint}", near=name)


def _alternates(config: Config, place: Written) -> Iterator[Finding]:
    mcp = config.mcp
    if mcp is None or place.touched(("mcp", "servers")):
        return
    for name, server in mcp.servers.items():
        for tool, own in server.tools.items():
            if own.alternate is None:
                continue
            at: Path = ("mcp", "servers", name, "tools", tool, "alternate")
            other, original = split(own.alternate)
            if not other or not original:
                yield Finding(at, "write it as server__tool, with the tool's name at that server", near=own.alternate)
            elif other not in mcp.servers:
                hint = did_you_mean(other, list(mcp.servers))
                yield Finding(at, f"there is no MCP server `{other}`{hint}", near=own.alternate)
            elif (other, original) == (name, tool):
                yield Finding(at, "is the tool itself", near=own.alternate)


def _retries(config: Config, place: Written) -> Iterator[Finding]:
    for path, scope in scopes(config, place):
        retry = getattr(scope, "retry", None)
        if retry is not None and retry.attempts == 1:
            for name in sorted(retry.model_fields_set - {"attempts"}):
                message = "has no effect with `attempts: 1`, which is no retry; leave it out"
                yield Finding((*path, "retry", name), message, key=True)


def _legacy_sse(config: Config, place: Written) -> Iterator[Finding]:
    if config.mcp is None or not config.mcp.legacy_sse:
        return
    if config.server.workers > 1 and not place.touched(("server", "workers")):
        message = "needs `workers: 1`: a message of HTTP+SSE must come to the worker that has the agent's stream"
        yield Finding(("mcp", "legacy_sse"), message, key=True)
    for name in ("sse", "messages"):
        if name in config.mcp.servers:
            at = f"{config.mcp.path}/{name}"
            message = f"`legacy_sse` serves at {at}; give the server another name, or leave that out"
            yield Finding(("mcp", "servers", name), message, key=True)


def _on_store_failure(config: Config, place: Written) -> Iterator[Finding]:
    if not config.state.is_memory or place.touched(("state",)):
        return
    for path, scope in scopes(config, place):
        for key in ("limits", "budgets"):
            for at, one in place.numbered((*path, key), getattr(scope, key, None) or ()):
                if "on_store_failure" in one.model_fields_set:
                    message = "has no effect with `state: memory`, which does not fail; leave it out"
                    yield Finding((*at, "on_store_failure"), message, key=True)


def _metrics(config: Config, place: Written) -> Iterator[Finding]:
    if config.server.metrics is None and place.has("telemetry", "metrics"):
        message = "has no effect, because `server.metrics` is null; name an address there, or leave this out"
        yield Finding(("telemetry", "metrics"), message, key=True)


def _state_file(config: Config, place: Written) -> Iterator[Finding]:
    if config.state.file is not None and config.issuer is None and not place.touched(("issuer",)):
        message = "a file keeps what an `issuer` must not forget, and there is none; write `memory`"
        yield Finding(("state",), message)


def _audit(config: Config, place: Written) -> Iterator[Finding]:
    spec = config.audit
    if spec is None:
        return
    if config.ledger is None and not place.touched(("ledger",)):
        yield Finding(("audit",), "has no effect without a `ledger`, which keeps the records", key=True)
    elif spec.log and config.telemetry.access_log is None and not place.touched(("telemetry",)):
        yield Finding(("audit", "log"), "has no effect without `telemetry.access_log`, which gets the lines", key=True)


def _issuer(config: Config, place: Written) -> Iterator[Finding]:
    """What the auth provider keeps is shared by all workers, and readable by nobody else."""
    spec = config.issuer
    if spec is None or place.touched(("state",)):
        return
    if config.state.is_memory:
        if config.server.workers > 1 and not place.touched(("server", "workers")):
            message = "all workers share the issuer's keys and logins; name a server in `state`, or set this to 1"
            yield Finding(("server", "workers"), message)
    elif not config.state.encryption_key:
        message = (
            "the issuer keeps its signing keys there, so it needs `state: {url: ..., encryption_key: ...}`; make one "
            "with: openssl rand -base64 32"
        )
        yield Finding(("state",), message)
    if config.mcp is None and config.authenticate is None and not spec.clients:
        dynamic = spec.registration.dynamic != "off" or spec.registration.metadata_documents == "on"
        if not dynamic and not place.touched(("issuer",)):
            yield Finding(("issuer", "clients"), "nobody could get a token: name clients, or allow `registration`")
    yield from _issuer_clients(config, spec, place)


def _issuer_clients(config: Config, spec: IssuerSpec, place: Written) -> Iterator[Finding]:
    nobody = not spec.users and not spec.upstream and not place.touched(("issuer",))
    if nobody and spec.registration.dynamic != "off":
        message = "has no effect: nobody can log in; name `users` or `upstream`, or leave it out"
        yield Finding(("issuer", "registration", "dynamic"), message, key=True)
    for path, one in place.numbered(("issuer", "trusted"), spec.trusted):
        if one.typ is not None and "token_exchange" not in one.grants:
            message = "has no effect: it is about tokens that are exchanged, and `grants` has no token_exchange"
            yield Finding((*path, "typ"), message, key=True, near=one.issuer)
    shown = any(one.tls is not None and one.tls.client_ca is not None for one in config.server.listen)
    by_certificate = any(client.tls_subject or client.tls_thumbprint for client in spec.clients)
    if spec.certificate_header is not None:
        at: Path = ("issuer", "certificate_header")
        shown = True
        if not config.server.trusted_proxies and not place.touched(("server", "trusted_proxies")):
            yield Finding(at, "is believed from trusted proxies only; name them in `server.trusted_proxies`", key=True)
        if not by_certificate and not place.touched(("issuer", "clients")):
            message = "has no effect: no client has a `tls_subject` or `tls_thumbprint`; leave it out"
            yield Finding(at, message, key=True)
    for path, client in place.numbered(("issuer", "clients"), spec.clients):
        if nobody and any(grant in _BY_USERS for grant in client.grants):
            message = "nobody can log in: name `issuer.users` or `issuer.upstream`, or give it other `grants`"
            yield Finding((*path, "grants"), message, near=client.id)
        for name in ("tls_subject", "tls_thumbprint"):
            if getattr(client, name) is not None and not shown and not place.touched(("server", "listen")):
                message = "has no effect: no listener asks for client certificates (`tls.client_ca`), and no proxy "
                message += "tells of them (`issuer.certificate_header`)"
                yield Finding((*path, name), message, key=True)
