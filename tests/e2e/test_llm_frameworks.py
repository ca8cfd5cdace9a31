"""Agent frameworks through the gateway: a model at another maker's API calls a tool twice, and answers."""

import asyncio
from collections.abc import AsyncIterable, Iterator
from typing import Any

import openai
import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    function_tool,
)
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import SecretStr
from pydantic_ai import Agent as PydanticAgent
from pydantic_ai.messages import PartDeltaEvent
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.openai import OpenAIResponsesModel as PydanticResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from tests.fixtures.gateway import Gateway
from tests.fixtures.llm_apis import ARGUMENTS, RESULTS, TOLD
from tests.fixtures.llm_gateway import CALLER, model_gateway, recorded
from tests.fixtures.llm_sdks import ASKED, SYSTEM
from tests.fixtures.llm_upstreams import Upstreams, upstreams


@pytest.fixture(scope="module")
def providers() -> Iterator[Upstreams]:
    with upstreams() as running:
        yield running


@pytest.fixture(scope="module")
def running(providers: Upstreams, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with model_gateway(providers, tmp_path_factory.mktemp("gateway")) as one:
        yield one


@pytest.fixture(autouse=True)
def understood(providers: Upstreams) -> Iterator[None]:
    """No provider was told what it does not understand."""
    wrong = len(providers.wrong)
    yield
    assert providers.wrong[wrong:] == []


def weather(called: list[dict[str, Any]]) -> Any:
    def get_weather(city: str, days: int) -> str:
        """Weather of a city."""
        called.append({"city": city, "days": days})
        return RESULTS[city]

    return get_weather


# ---- LangChain
def langchain(api: str, url: str, model: str) -> BaseChatModel:
    if api == "anthropic":
        return ChatAnthropic(model=model, base_url=url, api_key=CALLER, max_tokens=200, max_retries=0)  # type: ignore[call-arg, arg-type]
    return ChatOpenAI(
        model=model,
        base_url=url + "/v1",
        api_key=SecretStr(CALLER),
        max_retries=0,
        stream_usage=True,
        use_responses_api=api == "responses",
    )


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize(
    "api, name",
    [
        ("chat", "anthropic"),
        ("chat", "bedrock"),
        ("responses", "gemini"),
        ("responses", "compatible"),
        ("anthropic", "openai"),
        ("anthropic", "gemini"),
        ("anthropic", "anthropic"),
    ],
)
def test_langchain(api: str, name: str, stream: bool, running: Gateway) -> None:
    called: list[dict[str, Any]] = []
    get_weather = tool(weather(called))
    model = f"{name}.weather-langchain-{api}-{stream}"
    llm = langchain(api, running.url, model).bind_tools([get_weather])
    messages: list[Any] = [SystemMessage(SYSTEM), HumanMessage(ASKED)]
    answers: list[AIMessage] = []
    for _ in range(2):
        if stream:
            answer: Any = None
            for piece in llm.stream(messages):
                answer = piece if answer is None else answer + piece
        else:
            answer = llm.invoke(messages)
        answers.append(answer)
        messages.append(answer)
        messages += [
            ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"]) for call in answer.tool_calls
        ]
    assert called == ARGUMENTS
    assert answers[1].text == TOLD
    assert answers[1].usage_metadata is not None
    assert answers[1].usage_metadata["output_tokens"] == 17
    records = recorded(running, {model}, 2)[model]
    assert [(r["outcome"], r["output"]) for r in records] == [("ok", 21), ("ok", 17)]


# ---- pydantic-ai
def pydantic_model(api: str, url: str, model: str) -> Model:
    if api == "messages":
        return AnthropicModel(model, provider=AnthropicProvider(base_url=url, api_key=CALLER))
    provider = OpenAIProvider(base_url=url + "/v1", api_key=CALLER)
    if api == "responses":
        return PydanticResponsesModel(model, provider=provider)
    return OpenAIChatModel(model, provider=provider)


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize(
    "api, name",
    [
        ("chat", "gemini"),
        ("chat", "anthropic"),
        ("responses", "bedrock"),
        ("messages", "openai"),
        ("messages", "bedrock"),
    ],
)
def test_pydantic_ai(api: str, name: str, stream: bool, running: Gateway) -> None:
    called: list[dict[str, Any]] = []
    model = f"{name}.weather-pydantic-{api}-{stream}"

    async def run() -> tuple[str, int]:
        agent = PydanticAgent(pydantic_model(api, running.url, model), instructions=SYSTEM, tools=[weather(called)])
        pieces: list[object] = []

        async def watch(_: object, events: AsyncIterable[object]) -> None:
            pieces.extend([event async for event in events if isinstance(event, PartDeltaEvent)])

        result = await agent.run(ASKED, event_stream_handler=watch if stream else None)
        assert bool(pieces) is stream
        return result.output, result.usage.output_tokens

    text, output = asyncio.run(run())
    assert sorted(called, key=str) == sorted(ARGUMENTS, key=str)
    assert text == TOLD
    assert output == 21 + 17


# ---- openai-agents
@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize(
    "api, name", [("chat", "anthropic"), ("chat", "gemini"), ("responses", "openai"), ("responses", "bedrock")]
)
def test_openai_agents(api: str, name: str, stream: bool, running: Gateway) -> None:
    called: list[dict[str, Any]] = []
    model = f"{name}.weather-agents-{api}-{stream}"

    async def run() -> tuple[str, int]:
        async with openai.AsyncOpenAI(base_url=running.url + "/v1", api_key=CALLER, max_retries=0) as client:
            kind = OpenAIResponsesModel if api == "responses" else OpenAIChatCompletionsModel
            agent = Agent(
                name="w",
                instructions=SYSTEM,
                model=kind(model, client),
                tools=[function_tool(weather(called))],
                model_settings=ModelSettings(include_usage=True),
            )
            quiet = RunConfig(tracing_disabled=True)
            result: Any
            if stream:
                result = Runner.run_streamed(agent, ASKED, run_config=quiet)
                assert [event async for event in result.stream_events()]
            else:
                result = await Runner.run(agent, ASKED, run_config=quiet)
            return result.final_output, result.context_wrapper.usage.output_tokens

    text, output = asyncio.run(run())
    assert sorted(called, key=str) == sorted(ARGUMENTS, key=str)
    assert text == TOLD
    assert output == 21 + 17
