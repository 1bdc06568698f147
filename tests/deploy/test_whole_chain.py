"""docker-compose.yml run without Docker: its commands, environments and health checks, from a client to the model.

The gateway runs in an environment that holds its lock file and our package alone, the engine with vLLM and our plugin.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
from packaging.utils import canonicalize_name

from support.gateway_process import GatewayProcess
from support.lock_files import pinned
from support.metrics import Scrape
from support.tiny_engine import TinyEngine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

MODEL = "vaetki"
QUESTION: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "둘은?"}], "temperature": 0}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["서울", "부산"]}},
    "required": ["city"],
    "additionalProperties": False,
}


def thinking(on: bool) -> dict[str, Any]:
    return {"chat_template_kwargs": {"enable_thinking": on}}


@pytest.mark.parametrize("package", ["torch", "vllm", "sglang"])
def test_the_gateways_environment_has_no_engine(bare_environment: Path, package: str):
    python = bare_environment / "bin" / "python"
    done = subprocess.run([python, "-c", f"import {package}"], capture_output=True, text=True, check=False)
    assert f"No module named '{package}'" in done.stderr


def pip(environment: Path, *arguments: str) -> str:
    command = [str(environment / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_gateways_environment_is_its_lock_file_and_our_package(bare_environment: Path):
    listed = json.loads(pip(bare_environment, "list", "--format=json", "--exclude=pip", "--exclude=setuptools"))
    installed = {canonicalize_name(package["name"]): package["version"] for package in listed}
    assert installed.pop(canonicalize_name("trillion-serve"))
    assert installed == pinned("gateway")
    assert pip(bare_environment, "check").strip() == "No broken requirements found."


def test_both_health_checks_pass_and_fail_with_their_service(gateway: GatewayProcess, vllm_server: TinyEngine):
    assert vllm_server.service.is_healthy()
    assert gateway.service.is_healthy()
    gateway.service.kill()
    assert not gateway.service.is_healthy()
    assert vllm_server.service.is_healthy()


@pytest.mark.parametrize("think", [True, False])
def test_a_question_is_answered_whole_and_in_a_stream_alike(gateway: GatewayProcess, think: bool):
    client = gateway.client()
    asked = {**QUESTION, "max_tokens": 64, "extra_body": thinking(think)}
    message = client.chat.completions.create(**asked).choices[0].message
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, stream=True)]
    assert message.content
    assert "".join(delta.content or "" for delta in deltas) == message.content
    reasoning = "".join(getattr(delta, "reasoning", None) or "" for delta in deltas)
    assert bool(reasoning) is think
    assert reasoning == (getattr(message, "reasoning", None) or "")


def test_a_schema_binds_the_answer_after_the_reasoning(gateway: GatewayProcess):
    response_format = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
    asked = {**QUESTION, "max_tokens": 128, "response_format": response_format, "extra_body": thinking(True)}
    message = gateway.client().chat.completions.create(**asked).choices[0].message
    assert message.reasoning
    jsonschema.validate(json.loads(message.content), SCHEMA)


def test_without_the_key_there_is_no_answer(gateway: GatewayProcess):
    for key in ("none", gateway.key[:-1]):
        with pytest.raises(openai.AuthenticationError):
            gateway.client(key).chat.completions.create(**QUESTION)
    assert [model.id for model in gateway.client().models.list()] == [MODEL]


def test_prometheus_reads_the_figures_of_gateway_and_engine_without_a_key(gateway: GatewayProcess):
    before = Scrape(gateway.url)
    gateway.client().chat.completions.create(**QUESTION, max_tokens=8)
    after = Scrape(gateway.url)
    name, labels = "vllm:generation_tokens_total", {"model_name": MODEL}
    assert 1 <= after(name, **labels) - (before(name, **labels) or 0) <= 8
    assert after("vllm:kv_cache_usage_perc", **labels) is not None


def test_sigterm_ends_the_gateway_with_0_once_the_answer_under_way_is_whole(gateway: GatewayProcess):
    asked = {**QUESTION, "max_tokens": 200, "extra_body": thinking(False)}
    stream = iter(gateway.client().chat.completions.create(**asked, stream=True))
    next(stream)
    gateway.service.terminate()
    last = [chunk.choices[0].finish_reason for chunk in stream][-1]
    assert last in ("stop", "length")
    assert gateway.service.exit_code(30) == 0
