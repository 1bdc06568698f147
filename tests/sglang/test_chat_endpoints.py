"""SGLang's own endpoints with our model, template and reasoning parser."""

import httpx
import pytest
from openai import OpenAI

from support.sglang_parity import random_prompts

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def server(serving):
    return serving("vaetki")


@pytest.fixture(scope="module")
def client(server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)


def ask(client: OpenAI, **fields):
    asked = {"model": "default", "messages": [{"role": "user", "content": "둘은?"}], "max_tokens": 24, "temperature": 0}
    return client.chat.completions.create(**asked | fields)


def test_generate_takes_token_ids(server):
    (prompt,) = random_prompts([20])
    body = {"input_ids": prompt, "sampling_params": {"max_new_tokens": 5, "temperature": 0, "ignore_eos": True}}
    told = httpx.post(f"{server.url}/generate", json=body, timeout=60).json()
    assert told["output_ids"] == server.generate([prompt], 5)[0].tokens
    assert told["meta_info"]["prompt_tokens"] == 20


def test_thinking_that_is_cut_off_is_all_reasoning(client):
    message = ask(client).choices[0].message
    assert message.reasoning_content
    assert not message.content


def test_without_thinking_all_is_answer(client):
    message = ask(client, extra_body={"chat_template_kwargs": {"enable_thinking": False}}).choices[0].message
    assert message.content
    assert not getattr(message, "reasoning_content", None)
