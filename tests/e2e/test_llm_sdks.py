"""Every official SDK through the gateway to every kind of provider, which speaks its own wire format.

Each plays a whole tool-calling loop: two parallel calls with arguments in pieces, their results, an answer; unary and
streamed. Told right are texts, arguments, stop reasons and usage in the SDK's own words, and the ledger's counts.
"""

from collections.abc import Iterator

import pytest
from tests.fixtures.gateway import Gateway
from tests.fixtures.llm_apis import Tokens, tokens
from tests.fixtures.llm_gateway import CALLER, PROVIDERS, model_gateway, recorded, sent_as, tls_url
from tests.fixtures.llm_sdks import SDKS, SYSTEM
from tests.fixtures.llm_upstreams import SECRET, Upstreams, upstreams


@pytest.fixture(scope="module")
def providers() -> Iterator[Upstreams]:
    with upstreams() as running:
        yield running


@pytest.fixture(scope="module")
def running(providers: Upstreams, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    where = tmp_path_factory.mktemp("gateway")
    with model_gateway(providers, where) as one, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_CA_BUNDLE", str(where / "ca.pem"))
        yield one


@pytest.mark.parametrize("sdk", SDKS)
def test_the_providers_of_these_tests_are_what_the_sdks_expect(sdk: str, providers: Upstreams) -> None:
    """Without a gateway between them; boto3 signs."""
    api = "chat" if sdk == "azure" else sdk
    for stream in (False, True):
        turns = SDKS[sdk].play(providers.url, "" if sdk == "converse" else SECRET, "weather", stream)
        SDKS[sdk].check(turns, [tokens(api, 0), tokens(api, 1)])


@pytest.mark.parametrize("sdk", SDKS)
def test_a_tool_calling_loop(sdk: str, providers: Upstreams, running: Gateway, subtests: pytest.Subtests) -> None:
    # boto3 gives its key to nobody without TLS.
    url = tls_url(running) if sdk == "converse" else running.url
    own = "chat" if sdk == "azure" else sdk
    expected: dict[str, tuple[bool, list[Tokens]]] = {}
    for name, apis in PROVIDERS.items():
        api = own if own in apis else apis[0]
        used = [tokens(api, 0), tokens(api, 1)]
        for stream in (False, True):
            model = f"{name}.weather-{sdk}-{'stream' if stream else 'unary'}"
            with subtests.test(model):
                before, wrong = len(providers.seen), len(providers.wrong)
                try:
                    turns = SDKS[sdk].play(url, CALLER, model, stream)
                finally:
                    assert providers.wrong[wrong:] == []
                SDKS[sdk].check(turns, used)
                asked = providers.seen[before:]
                assert [(seen.api, seen.model, seen.stream) for seen in asked] == [(api, sent_as(model), stream)] * 2
                assert SYSTEM in str(asked[0].body)
                assert "200" in str(asked[0].body), "the bound on output tokens did not come"
                assert CALLER not in str(asked[0].headers)
                expected[model] = (stream, used)
    records = recorded(running, set(expected), 2 * len(expected))
    for model, (stream, used) in expected.items():
        with subtests.test(f"{model} in the ledger"):
            for record, turn in zip(records[model], used, strict=True):
                for kind in ("input", "output", "cache_read", "cache_write", "reasoning"):
                    assert record[kind] == getattr(turn, kind), kind
                assert (record["outcome"], record["stream"], record["estimated"]) == ("ok", stream, False)
