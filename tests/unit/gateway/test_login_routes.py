"""Where people come back from providers: an address of one provider, for however many routes."""

from pathlib import Path

import pytest

from tollhouse.config.parse import parse
from tollhouse.core.errors import ConfigError
from tollhouse.gateway.build import validate


def test_two_providers_need_two_ways_back(tmp_path: Path) -> None:
    route = (
        "{{name: {0}, path: /{0}, to: 'http://127.0.0.1:1', "
        "authenticate: {{oidc: {{issuer: 'https://{1}', client_id: x{2}}}}}}}"
    )
    both = [route.format("a", "one", ""), route.format("b", "two", "")]
    with pytest.raises(ConfigError, match="give this one another `callback`"):
        validate(parse(f"routes: [{', '.join(both)}]\n", "t.yaml", {}).config)
    both[1] = route.format("b", "two", ", callback: /.login/two")
    validate(parse(f"routes: [{', '.join(both)}]\n", "t.yaml", {}).config)
    for name in ("logout", "backchannel_logout"):
        taken = [
            route.format("a", "one", f", {name}: /.login/x"),
            route.format("b", "two", f", callback: /.login/two, {name}: /.login/x"),
        ]
        with pytest.raises(ConfigError, match=f"give this one another `{name}`"):
            validate(parse(f"routes: [{', '.join(taken)}]\n", "t.yaml", {}).config)
    same = [route.format("a", "one", ""), route.format("b", "one", "")]
    validate(parse(f"routes: [{', '.join(same)}]\n", "t.yaml", {}).config)
