"""LangChain and LiteLLM as clients: skipped where they are not installed; ``make test-clients`` installs them."""

from typing import Any

import pytest

from support.running_gateway import CONTENT, MODEL, REASONING, Gateway

QUESTION = "둘은?"
WEATHER = {
    "name": "get_weather",
    "description": "The weather in a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "서울"}}</tool_call>'


class TestLangChain:
    """``langchain_openai.ChatOpenAI``."""

    @pytest.fixture
    def chat(self, gateway: Gateway) -> Any:
        library = pytest.importorskip("langchain_openai")
        return library.ChatOpenAI(model=MODEL, base_url=gateway.url, api_key="none", max_retries=0)

    def test_an_answer(self, chat: Any) -> None:
        answer = chat.invoke(QUESTION)
        assert answer.content == CONTENT
        assert answer.usage_metadata["output_token_details"]["reasoning"] > 0

    def test_a_stream(self, chat: Any) -> None:
        assert "".join(chunk.content for chunk in chat.stream(QUESTION)) == CONTENT

    def test_a_tool_call(self, chat: Any, gateway: Gateway) -> None:
        gateway.reply = CALL
        answer = chat.bind_tools([{"type": "function", "function": WEATHER}]).invoke(QUESTION)
        assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("get_weather", {"city": "서울"})]


class TestLiteLLM:
    """``litellm.completion``."""

    @pytest.fixture
    def ask(self, gateway: Gateway) -> Any:
        library = pytest.importorskip("litellm")

        def ask(**options: Any) -> Any:
            messages = [{"role": "user", "content": QUESTION}]
            return library.completion(
                model=f"openai/{MODEL}", api_base=gateway.url, api_key="none", messages=messages, **options
            )

        return ask

    def test_an_answer(self, ask: Any) -> None:
        message = ask().choices[0].message
        assert (message.content, message.reasoning_content) == (CONTENT, REASONING)

    def test_a_stream(self, ask: Any) -> None:
        deltas = [chunk.choices[0].delta for chunk in ask(stream=True)]
        assert "".join(delta.content or "" for delta in deltas) == CONTENT
        assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == REASONING

    def test_a_tool_call(self, ask: Any, gateway: Gateway) -> None:
        gateway.reply = CALL
        (call,) = ask(tools=[{"type": "function", "function": WEATHER}]).choices[0].message.tool_calls
        assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "서울"}')
