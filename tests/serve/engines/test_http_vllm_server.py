"""The HTTP adapter against the real ``vllm serve``, with a tiny VAETKI of random weights and our plugin."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import torch

import trillion_model
from support.tiny_vaetki import tiny_model
from support.upstream_servers import until
from trillion_serve.engines.http import HttpOptions
from trillion_serve.engines.http_vllm import VllmHttpEngine
from trillion_serve.engines.protocol import GenerateRequest, SamplingParams, TokenDelta, TokenLogprob
from trillion_serve.errors import EngineUnavailableError, RequestRefusedError
from trillion_serve.routing import HealthConfig, Pool, PoolConfig, RetryConfig

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

PROMPT = tuple(range(5, 200))
START_SECONDS = 180
ARGUMENTS = {
    "--served-model-name": "tiny",
    "--host": "127.0.0.1",
    "--dtype": "float32",
    "--max-model-len": "512",
    "--max-num-batched-tokens": "128",
    "--max-num-seqs": "8",
    "--kv-cache-memory-bytes": str(64 << 20),
}
SWITCHES = ["--enforce-eager", "--enable-prompt-tokens-details"]


@dataclass
class Server:
    """A running vLLM, and the model it runs."""

    url: str
    process: subprocess.Popen
    model: torch.nn.Module

    def kill(self) -> None:
        """Kill it and its engine, as a machine that goes away does."""
        os.killpg(self.process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def server(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """``vllm serve`` in a process group of its own."""
    trillion_model.register()
    directory = tmp_path_factory.mktemp("served") / "tiny"
    shutil.copytree(tokenizer_dir, directory)
    model = tiny_model(vocab_size=512)
    model.save_pretrained(directory)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = directory.with_suffix(".log")
    environment = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    arguments = ARGUMENTS | {"--model": str(directory), "--port": str(port)}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *SWITCHES]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, *(word for pair in arguments.items() for word in pair)],
            env=os.environ | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running = Server(f"http://127.0.0.1:{port}", process, model)
    try:
        if not asyncio.run(_started(running)):
            pytest.fail(f"vLLM did not start:\n{log.read_text()[-4000:]}")
        yield running
    finally:
        if process.poll() is None:
            running.kill()
        process.wait()


async def _started(server: Server) -> bool:
    deadline = time.monotonic() + START_SECONDS
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < deadline and server.process.poll() is None:
            try:
                async with session.get(f"{server.url}/health") as response:
                    if response.status == 200:
                        return True
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.5)
    return False


@pytest.fixture
async def engine(server: Server):
    """The adapter, connected."""
    connected = await VllmHttpEngine.connect(HttpOptions(url=server.url, model="tiny"))
    yield connected
    await connected.close()


async def answer(engine, request_id: str, prompt=PROMPT, **sampling) -> list[TokenDelta]:
    params = SamplingParams(**{"max_tokens": 12, "temperature": 0.0} | sampling)
    async with aclosing(engine.generate(GenerateRequest(request_id, prompt, params))) as deltas:
        return [delta async for delta in deltas]


def tokens(deltas: list[TokenDelta]) -> tuple[int, ...]:
    return sum((delta.token_ids for delta in deltas), ())


def entries(deltas: list[TokenDelta]) -> list[TokenLogprob]:
    return [entry for delta in deltas for entry in delta.logprobs or ()]


def expected(model: torch.nn.Module, sequence: tuple[int, ...]) -> torch.Tensor:
    """Log-probabilities of every next token in plain PyTorch # (seq, vocab)"""
    with torch.no_grad():
        return model(torch.tensor([sequence])).logits[0].float().log_softmax(-1)


def assert_scores(scored: list[TokenLogprob], rows: torch.Tensor) -> None:
    for entry, row in zip(scored, rows, strict=True):
        best = row.topk(2)
        assert entry.logprob == pytest.approx(row[entry.token_id].item(), abs=1e-4)
        assert [logprob for _, logprob in entry.top] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert entry.top[0][0] == best.indices[0].item()


async def test_answers_and_log_probabilities_are_the_models_own(server, engine):
    deltas = await answer(engine, "greedy", top_logprobs=2)
    assert len(tokens(deltas)) == 12
    assert deltas[-1].finish_reason == "length"
    rows = expected(server.model, PROMPT + tokens(deltas))
    assert tokens(deltas) == tuple(rows[len(PROMPT) - 1 : -1].argmax(-1).tolist())
    assert_scores(entries(deltas), rows[len(PROMPT) - 1 : -1])
    assert_scores(await engine.score(PROMPT, 2), rows[: len(PROMPT) - 1])


async def test_a_second_time_the_prompt_is_cached(engine):
    await answer(engine, "warm")
    again = await answer(engine, "again")
    assert again[-1].prompt_tokens == len(PROMPT)
    assert again[-1].cached_tokens >= 128


async def test_stop_tokens_end_an_answer_and_come_with_it(engine):
    first = tokens(await answer(engine, "first"))
    stopped = await answer(engine, "stopped", stop_token_ids=(first[1],))
    assert tokens(stopped) == first[: first.index(first[1]) + 1]
    assert stopped[-1].finish_reason == "stop"


async def test_a_seed_repeats_an_answer(engine):
    one, same, other = [tokens(await answer(engine, f"seed{n}", temperature=1.5, seed=s)) for n, s in enumerate("334")]
    assert one == same != other


async def test_what_vllm_refuses_is_refused(engine):
    with pytest.raises(RequestRefusedError, match="maximum context length"):
        await answer(engine, "long", tuple(range(600)))
    with pytest.raises(RequestRefusedError, match="out of vocabulary"):
        await answer(engine, "unknown", (5, 99_999))
    with pytest.raises(RequestRefusedError, match="logprobs"):
        await answer(engine, "many", top_logprobs=200)


async def figure(engine, name: str) -> float:
    """A figure of vLLM's metrics."""
    (line,) = [line for line in (await engine._metrics()).splitlines() if line.startswith(f"vllm:{name}{{")]
    return float(line.rsplit(" ", 1)[1])


async def test_leaving_stops_the_request_in_vllm(engine):
    before = await figure(engine, "generation_tokens_total")
    params = SamplingParams(max_tokens=300, temperature=1.0)
    async with aclosing(engine.generate(GenerateRequest("left", PROMPT, params))) as deltas:
        await anext(deltas)
    generated = []
    for _ in range(4):
        await asyncio.sleep(0.5)
        generated.append(await figure(engine, "generation_tokens_total") - before)
    assert 1 <= generated[-1] < 100
    assert generated[-1] == generated[-2], "it goes on"


async def test_a_vllm_that_is_killed_is_unavailable(server):
    """The last test here: it leaves no server."""
    pool = Pool(PoolConfig(retry=RetryConfig(attempts=2), health=HealthConfig(interval=0.1)))
    pool.add("only", lambda: VllmHttpEngine.connect(HttpOptions(url=server.url)))
    await pool.ready(10.0)
    assert pool.info.context_length == 512
    deltas = pool.generate(GenerateRequest("killed", PROMPT, SamplingParams(max_tokens=300, temperature=1.0)))
    await anext(deltas)
    server.kill()
    with pytest.raises(EngineUnavailableError):
        async for _ in deltas:
            pass
    await until(lambda: pool.snapshot().replicas[0].state == "unhealthy")
    with pytest.raises(EngineUnavailableError, match="only is unhealthy"):
        await answer(pool, "after")
    await pool.close()
