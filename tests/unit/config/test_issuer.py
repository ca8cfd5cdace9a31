"""What must hold between the auth provider and the rest of a configuration."""

import pytest
from tests.unit.config.told import problems

from tollhouse.config.parse import parse
from tollhouse.gateway.runtime import fixed

SECRET = "0123456789abcdef0123456789abcdef"
ROBOT = f"{{id: robot, secret: {SECRET}, grants: [client_credentials]}}"
ISSUER = f"""
issuer:
  url: https://auth.example.com
  clients: [{{id: robot, secret: {SECRET}, grants: [client_credentials]}}]
"""


def test_an_issuer_alone_may_be_reached_by_everybody() -> None:
    assert problems(f"server: {{listen: 0.0.0.0:8080}}{ISSUER}") == []


def test_what_stands_beside_it_still_needs_somebody_to_be_named() -> None:
    routes = "routes: [{name: a, path: /a/, to: 'http://127.0.0.1:1'}]\n"
    [problem] = problems(f"server: {{listen: 0.0.0.0:8080}}\n{routes}{ISSUER}")
    assert "say who may with `authenticate`" in problem
    assert problems(f"server: {{listen: 0.0.0.0:8080}}\nauthenticate: {{}}\n{routes}{ISSUER}") == []


def test_keys_are_not_kept_where_everybody_reads_them() -> None:
    [problem] = problems(f"state: redis://127.0.0.1:6379/0{ISSUER}")
    assert problem.startswith("state: ")
    assert "encryption_key" in problem
    sealed = f"state: {{url: 'redis://127.0.0.1:6379/0', encryption_key: {SECRET}}}{ISSUER}"
    assert problems(sealed) == []


def test_several_workers_share_their_keys() -> None:
    found = problems(f"server: {{workers: 2}}{ISSUER}")
    assert any(problem.startswith("server.workers: ") and "`state`" in problem for problem in found)


def test_somebody_must_be_able_to_get_a_token() -> None:
    [problem] = problems("issuer: {url: https://auth.example.com, registration: {metadata_documents: off}}")
    assert problem.startswith("issuer.clients: ")


def test_what_needs_somebody_who_logs_in() -> None:
    app = f"{{id: app, secret: {SECRET}, redirect_uris: ['https://a.example/cb']}}"
    [problem] = problems(f"issuer: {{url: https://auth.example.com, clients: [{app}]}}")
    assert problem.startswith("issuer.clients[0].grants: nobody can log in")
    found = problems(f"issuer: {{url: https://auth.example.com, registration: {{dynamic: on}}, clients: [{ROBOT}]}}")
    assert [problem.partition(":")[0] for problem in found] == ["issuer.registration.dynamic"]


def test_a_certificate_that_nobody_asks_for() -> None:
    robot = "{id: r, tls_subject: 'CN=r', grants: [client_credentials]}"
    [problem] = problems(f"issuer: {{url: https://auth.example.com, clients: [{robot}]}}")
    assert problem.startswith("issuer.clients[0].tls_subject: has no effect")


def test_a_type_of_tokens_that_are_not_exchanged() -> None:
    def trusting(grants: str) -> list[str]:
        one = f"{{issuer: https://i.example, jwks: https://i.example/jwks, typ: [at+jwt], grants: [{grants}]}}"
        return problems(f"issuer: {{url: https://auth.example.com, clients: [{ROBOT}], trusted: [{one}]}}")

    assert trusting("token_exchange, id_jag") == []
    [problem] = trusting("id_jag")
    assert problem.startswith("issuer.trusted[0].typ: has no effect")


def test_it_does_not_come_while_its_file_is_not_open() -> None:
    without, with_one = parse("{}", "t.yaml", {}).config, parse(ISSUER, "t.yaml", {}).config
    other = parse(ISSUER.replace("id: robot", "id: other"), "t.yaml", {}).config
    assert [problem.path for problem in fixed(without, with_one)] == ["issuer"]
    assert fixed(with_one, without) == []
    assert fixed(with_one, other) == []


@pytest.mark.parametrize("text", ["issuer: {}", "issuer: {url: https://a.example/, users: x}"])
def test_a_mistake_is_told_once(text: str) -> None:
    assert problems(text)
