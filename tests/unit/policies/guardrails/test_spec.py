"""What guardrails may be configured as, and what is refused with which words."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tests.unit.policies.floor import layer, parts
from tests.unit.policies.guardrails.house import Server, asked, completion, guarded, through

from tollhouse.config.parse import LoadError, parse
from tollhouse.core.errors import ConfigError, Failure
from tollhouse.core.spec import Reading
from tollhouse.policies.guardrails.policy import GUARD_ANSWERS, GUARD_REQUESTS
from tollhouse.policies.guardrails.seeking import patterns_of
from tollhouse.policies.guardrails.spec import GuardrailsSpec, GuardRuleSpec

pytestmark = pytest.mark.anyio


def rule(**spec: Any) -> GuardRuleSpec:
    return GuardRuleSpec.model_validate(spec)


def wrong(**spec: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        GuardrailsSpec.model_validate(spec)
    return "\n".join(str(error["loc"]) + error["msg"] for error in caught.value.errors())


def test_short_forms() -> None:
    assert rule(pii=True).pii == ("pii",)
    assert rule(pii=["-phone"]).pii == ("pii", "-phone")
    assert rule(secrets=True).secrets == ("secrets",)
    assert rule(regex="a+").regex == ("a+",)
    assert rule(keywords=["a b"]).sought.words == ("a b",)
    assert rule(dangers=True).dangers == ("sql", "shell", "code", "markup", "path")
    assert rule(pii=True).label == "pii"
    assert rule(pii=True, name="people").label == "people"
    assert rule(pii=True).action == "reject"


def test_the_names_are_those_that_are_meant() -> None:
    names = {one.name for one in patterns_of(rule(pii=["-phone", "-email"]))}
    assert "iban" in names
    assert not names & {"phone", "email", "ip"}
    assert {one.name for one in patterns_of(rule(pii=["ip"]))} == {"ip"}
    assert {one.name for one in patterns_of(rule(regex="a+", name="part"))} == {"part"}


@pytest.mark.parametrize(
    "spec, message",
    [
        ({}, "neither `request` nor `response` has a rule"),
        ({"request": [{"action": "mask"}]}, "this rule looks for nothing"),
        ({"request": [{"pii": True, "secrets": True}]}, "pii and secrets are 2 rules"),
        ({"request": [{"pii": ["aws"]}]}, "'aws' belongs to `secrets`"),
        ({"request": [{"secrets": ["email"]}]}, "'email' belongs to `pii`"),
        ({"request": [{"pii": ["emial"]}]}, "'email' may be meant"),
        ({"request": [{"regex": "a*"}]}, "matches the empty text"),
        ({"request": [{"regex": "(?=a)b"}]}, "look"),
        ({"request": [{"keywords": {}}]}, "write `words`, or a `file` of them"),
        ({"request": [{"keywords": {"words": ["a"], "file": "b"}}]}, "write `words`, or a `file` of them"),
        ({"request": [{"links": {"allow": ["a b"]}}]}, "is not the name of a host"),
        ({"request": [{"dangers": ["java"]}]}, "no such kind of danger"),
        ({"request": [{"pii": True, "reversible": True}]}, "`reversible` has an effect with `action: mask` only"),
        ({"request": [{"pii": True, "replacement": "x"}]}, "`replacement` has an effect with `action: mask` only"),
        (
            {"request": [{"pii": True, "action": "mask", "reversible": True, "replacement": "x"}]},
            "cannot be `reversible`",
        ),
        ({"request": [{"pii": True, "action": "flag", "message": "x"}]}, "`message` has an effect"),
        ({"request": [{"pii": True, "timeout": "1s"}]}, "`timeout` has no effect here"),
        ({"request": [{"pii": True, "on_failure": "open"}]}, "`on_failure` has no effect here"),
        ({"request": [{"length": {"max": 5}, "parallel": True}]}, "`parallel` has no effect here"),
        ({"response": [{"pii": True, "window": 500}]}, "`window` has no effect here"),
        ({"response": [{"length": {"max": 5}, "stream": "window"}]}, "judges an answer as a whole"),
        ({"response": [{"language": ["en"], "action": "mask"}]}, "nothing of what could be masked"),
        ({"request": [{"webhook": {"url": "http://x/"}, "max_match": 900}]}, "on patterns only"),
        ({"request": [{"webhook": {"url": "http://x/"}, "action": "mask", "parallel": True}]}, "cannot mask"),
        ({"response": [{"webhook": {"url": "http://x/"}, "window": 500}]}, "with `stream: window` only"),
        ({"response": [{"pii": True, "in": ["system"]}]}, "there is no system in a response"),
        ({"response": [{"pii": True, "action": "mask", "reversible": True}]}, "on requests only"),
        ({"request": [{"webhook": {"url": "http://x/"}, "stream": "window"}]}, "on responses only"),
        ({"request": [{"pii": True, "name": "No Spaces"}]}, "pattern"),
    ],
)
def test_what_is_refused(spec: Any, message: str) -> None:
    assert message in wrong(**spec)


@pytest.mark.parametrize(
    "level, entrance, phase, texts, said",
    [
        ("model", "llm", "response", ["results"], "a response has arguments, reasoning, text"),
        ("server", "mcp", "request", ["system"], "a request has arguments, results, text"),
        ("tool", "mcp", "response", ["reasoning"], "a response has descriptions, results, text"),
    ],
)
def test_texts_that_are_not_there(level: str, entrance: Any, phase: str, texts: list[str], said: str) -> None:
    kind = GUARD_REQUESTS if phase == "request" else GUARD_ANSWERS
    spec = GuardrailsSpec.model_validate({phase: [{"pii": True}, {"secrets": True, "in": texts}]})
    with pytest.raises(ConfigError) as caught:
        kind.make((layer(spec, level, "x"),), parts(entrance=entrance))
    [problem] = caught.value.problems
    assert problem.path == f"{level} x: guardrails.{phase}[1].in"
    assert said in problem.message


CONFIG = """
server: {{listen: "127.0.0.1:0"}}
{more}
guardrails:
  request:
    - {{pii: true, in: [text]}}
  response:
    - {{pii: true, in: [{texts}]}}
"""
MODELS = """
providers: {p: {kind: openai, api_key: k}}
models: [{name: m, targets: [{provider: p, model: x}]}]
"""
SERVERS = "mcp: {servers: {a: {command: a}}}"


@pytest.mark.parametrize(
    "more, texts, said",
    [
        ("", "text", ":1: guardrails: has no effect without models and MCP servers"),
        (MODELS, "results", "guardrails.response[0].in: has no effect here: a response has arguments, reasoning, text"),
        (SERVERS, "reasoning", "a response has arguments, descriptions, results, text"),
        (MODELS + SERVERS, "results", ""),
    ],
)
def test_what_would_look_at_nothing(more: str, texts: str, said: str) -> None:
    try:
        parse(CONFIG.format(more=more, texts=texts), "t.yaml", {})
        found = ""
    except LoadError as error:
        found = "\n".join(map(str, error.problems))
    assert (said in found) if said else not found
    assert found.count("\n") == 0


def test_routes_have_none() -> None:
    text = (
        'server: {listen: "127.0.0.1:0"}\nroutes: [{name: a, path: /a, to: ["http://127.0.0.1:1"], guardrails: {}}]\n'
    )
    with pytest.raises(LoadError) as caught:
        parse(text, "t.yaml", {})
    assert "guardrails" in str(caught.value)


async def test_keywords_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("# names\nProject Rose\n\n  Lily\n")
    reading = Reading(str(tmp_path))
    made = parts(entrance="llm")
    spec = {"request": [{"keywords": {"file": "words.txt"}}]}

    def of_file() -> Any:
        return GuardrailsSpec.model_validate(spec, context=reading).model_dump(exclude_unset=True, by_alias=True)

    for text in ("about project rose", "a lily"):
        with pytest.raises(Failure):
            await guarded(Server(), of_file(), made=made)(asked(messages=[{"role": "user", "content": text}]))
    assert str(file) in reading.files  # a change of it is a change of the configuration
    file.write_text("tulip\n")
    server = Server(completion("ok"))
    await through(guarded(server, of_file(), made=made), asked(messages=[{"role": "user", "content": "a lily"}]))
    for content, said in ((b"", "has no keywords"), (b"\xff", "is not UTF-8")):
        file.write_bytes(content)
        with pytest.raises(ValidationError, match=said):
            of_file()


def test_rules_whose_file_has_changed_are_others(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("rose\n")
    one, same = rule(keywords={"file": str(file)}), rule(keywords={"file": str(file)})
    assert one == same
    file.write_text("tulip\n")
    assert one != rule(keywords={"file": str(file)})


def test_sets_are_shared_by_chains_with_the_same_rules() -> None:
    made = parts(entrance="llm")
    spec = {"request": [{"pii": ["email"]}], "response": [{"secrets": ["aws"]}]}
    guarded(Server(), spec, made=made)
    count = len(made.shared.parts)  # type: ignore[attr-defined]
    guarded(Server(), spec, made=made)
    assert len(made.shared.parts) == count  # type: ignore[attr-defined]


def test_nothing_is_in_the_chain_where_nothing_is_configured() -> None:
    assert (
        GUARD_ANSWERS.make((layer(GuardrailsSpec.model_validate({"request": [{"pii": True}]})),), parts(entrance="llm"))
        is None
    )
