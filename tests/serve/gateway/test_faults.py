"""Faults through the whole chain: a client, the gateway, its pool and HTTP adapter, and a server that goes wrong.

``pytest tests/serve/gateway -k faults``
"""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from support.running_chain import MODEL, QUICK, Chain, answering, replica, run_chain, seen
from support.upstream_servers import Upstream, VllmUpstream, serving, until
from trillion_serve.chat.tokenizer import ChatTokenizer

ANSWER = "답: 2. 끝"
ROOT = Path(__file__).parents[3]


@pytest.fixture
def chains(tokenizer_dir: Path, tmp_path: Path) -> Any:
    """Makes a gateway in front of upstreams, which are called a, b and so on."""

    @asynccontextmanager
    async def run(*upstreams: Upstream, **config: Any) -> AsyncIterator[Chain]:
        async with AsyncExitStack() as stack:
            urls = {
                "abcd"[index]: await stack.enter_async_context(serving(upstream.app()))
                for index, upstream in enumerate(upstreams)
            }
            yield await stack.enter_async_context(run_chain(tokenizer_dir, tmp_path / "gateway.yaml", urls, **config))

    return run


async def end_of(events: AsyncIterator[str]) -> dict[str, Any] | str:
    """The last event of a stream."""
    last = [event async for event in events][-1]
    return last if last == "[DONE]" else json.loads(last)


async def test_an_answer_comes_through_the_whole_chain(chains: Any, tokenizer: ChatTokenizer) -> None:
    upstream = answering(tokenizer, ANSWER)
    async with chains(upstream) as chain:
        assert await chain.content() == ANSWER
    assert upstream.requests[0]["prompt"]


async def test_an_engine_that_is_killed_in_a_stream_ends_it_with_an_error(
    chains: Any, tokenizer: ChatTokenizer
) -> None:
    killed, other = answering(tokenizer, ANSWER), answering(tokenizer, ANSWER)
    killed.faults.append("break")
    other.faults.append("break")
    async with chains(killed, other) as chain, chain.stream() as events:
        error = await end_of(events)
    assert error["error"]["code"] == "engine_unavailable"
    # What has been sent cannot be taken back, so nobody else is asked.
    assert seen(killed) + seen(other) == 1


@pytest.mark.parametrize("fault", ["500", "503", "garbage", "error_event"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_fault_before_the_first_byte_is_retried_elsewhere(
    chains: Any, tokenizer: ChatTokenizer, fault: str, stream: bool
) -> None:
    one, other = answering(tokenizer, ANSWER), answering(tokenizer, ANSWER)
    async with chains(one, other) as chain:
        await chain.content()
        home = one if seen(one) else other
        home.faults.append(fault)
        if stream:
            async with chain.stream() as events:
                assert await end_of(events) == "[DONE]"
        else:
            assert await chain.content() == ANSWER
    assert (seen(one), seen(other)) == ((2, 1) if home is one else (1, 2))


async def test_a_fault_everywhere_is_a_503(chains: Any, tokenizer: ChatTokenizer) -> None:
    upstream = answering(tokenizer, ANSWER)
    upstream.faults.extend(["500"] * 3)
    async with chains(upstream) as chain:
        answer = await chain.post(stream=True)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
        assert seen(upstream) == 3
        assert await chain.content() == ANSWER


async def test_a_request_that_an_engine_refuses_is_not_retried(chains: Any, tokenizer: ChatTokenizer) -> None:
    upstream = answering(tokenizer, ANSWER)
    upstream.faults.append("400")
    async with chains(upstream) as chain:
        answer = await chain.post()
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "request_refused")
    assert seen(upstream) == 1


async def test_engines_that_are_full_are_a_429_that_says_when_to_come_back(
    chains: Any, tokenizer: ChatTokenizer
) -> None:
    upstream = answering(tokenizer, ANSWER)
    upstream.faults.extend(["429"] * 3)
    async with chains(upstream) as chain:
        answer = await chain.post()
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")


async def test_a_hung_engine_is_left_for_another_when_no_first_token_comes(
    chains: Any, tokenizer: ChatTokenizer
) -> None:
    one, other = answering(tokenizer, ANSWER), answering(tokenizer, ANSWER)
    async with chains(one, other, timeouts={"first_token": 0.3}) as chain:
        await chain.content()
        home = one if seen(one) else other
        home.faults.append("hang")
        assert await chain.content() == ANSWER
        await until(lambda: home.left)


async def test_an_engine_that_hangs_between_tokens_ends_the_stream_with_an_error(
    chains: Any, tokenizer: ChatTokenizer
) -> None:
    upstream = answering(tokenizer, ANSWER)
    upstream.faults.append("hang_later")
    async with chains(upstream, timeouts={"between_tokens": 0.3}) as chain, chain.stream() as events:
        error = await end_of(events)
        assert error["error"]["code"] == "engine_unavailable"
        assert "no token within 0.3 s" in error["error"]["message"]
        await until(lambda: upstream.left)


async def test_malformed_frames_in_a_stream_end_it_with_an_error(chains: Any, tokenizer: ChatTokenizer) -> None:
    class Corrupt(VllmUpstream):
        async def events(self, request_id: str, fault: str, frames: list[Any]) -> AsyncIterator[bytes]:
            yield b"data: " + json.dumps(frames[0]).encode() + b"\n\n"
            await asyncio.sleep(0.05)
            yield b'data: {"choices": [{"token_ids": "eleven"}]}\n\n'

    async with chains(Corrupt(tokens=answering(tokenizer, ANSWER).tokens)) as chain, chain.stream() as events:
        error = await end_of(events)
    assert "cannot be read" in error["error"]["message"]


async def test_a_hung_server_is_taken_out_and_comes_back(chains: Any, tokenizer: ChatTokenizer) -> None:
    one, other = answering(tokenizer, ANSWER), answering(tokenizer, ANSWER)
    async with chains(one, other, pool={"health": {"interval": 0.05, "timeout": 0.2, "failures": 1}}) as chain:
        one.hung = True
        await until(lambda: chain.states()["a"] == "unhealthy")
        assert [await chain.content() for _ in range(3)] == [ANSWER] * 3
        assert seen(other) == 3
        assert (await chain.client.get("/ready")).status_code == 200
        one.hung = False
        await chain.all_ready()


async def test_a_slow_reader_gets_everything_and_holds_up_nobody(chains: Any, tokenizer: ChatTokenizer) -> None:
    long = " ".join(map(str, range(400)))
    upstream = answering(tokenizer, long, chunk=10)
    async with chains(upstream, timeouts={"between_tokens": 5.0}) as chain:
        slow = await connect(chain, chain.body(stream=True, logprobs=True, top_logprobs=20))
        await until(lambda: seen(upstream) == 1)
        upstream.tokens = answering(tokenizer, ANSWER).tokens
        assert await chain.content() == ANSWER
        reader, writer = slow
        text = b""
        while not text.endswith(b"0\r\n\r\n"):
            text += await reader.read(16_384)
            await asyncio.sleep(0.001)
        writer.close()
    assert len(text) > 1_000_000
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith(b'data: {"')]
    words = [choice["delta"].get("content") or "" for event in events for choice in event["choices"]]
    assert "".join(words) == long
    assert b"data: [DONE]" in text


async def connect(chain: Chain, body: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that has sent a chat request and has a small window to read with."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    address = (chain.client.base_url.host, chain.client.base_url.port)
    await asyncio.get_running_loop().sock_connect(sock, address)
    reader, writer = await asyncio.open_connection(sock=sock, limit=4096)
    content = json.dumps(body).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    writer.write(head + f"Content-Length: {len(content)}\r\n\r\n".encode() + content)
    await writer.drain()
    return reader, writer


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stage", ["before the first byte", "in the middle"])
async def test_a_client_that_leaves_aborts_its_request_upstream(
    chains: Any, tokenizer: ChatTokenizer, stream: bool, stage: str
) -> None:
    upstream = answering(tokenizer, ANSWER * 20, interval=0.02)
    upstream.faults.append("hang" if stage == "before the first byte" else "hang_later")
    async with chains(upstream) as chain:
        reader, writer = await connect(chain, chain.body(stream=stream))
        await until(lambda: seen(upstream) == 1)
        if stage == "in the middle":
            await (reader.readuntil(b"data: ") if stream else asyncio.sleep(0.2))
        assert not upstream.left
        writer.close()
        await until(lambda: upstream.left, 2.0)
        assert chain.deployment.front.under_way == 0
        pool = chain.deployment.models.get(MODEL).pool
        await until(lambda: pool.snapshot().replicas[0].running == 0)


async def test_a_client_that_leaves_while_it_waits_in_the_queue_is_never_sent(
    chains: Any, tokenizer: ChatTokenizer
) -> None:
    upstream = answering(tokenizer, ANSWER)
    upstream.faults.append("hang")
    async with chains(upstream, pool={"max_concurrency": 1}) as chain:
        pool = chain.deployment.models.get(MODEL).pool
        _, first = await connect(chain, chain.body())
        await until(lambda: seen(upstream) == 1)
        _, second = await connect(chain, chain.body())
        await until(lambda: pool.snapshot().waiting == 1)
        second.close()
        await until(lambda: pool.snapshot().waiting == 0)
        first.close()
        await until(lambda: upstream.left)
        assert await chain.content() == ANSWER
    assert seen(upstream) == 2


async def test_a_client_that_leaves_in_the_middle_of_its_body_costs_nothing(
    chains: Any, tokenizer: ChatTokenizer
) -> None:
    upstream = answering(tokenizer, ANSWER)
    async with chains(upstream) as chain:
        address = (chain.client.base_url.host, chain.client.base_url.port)
        _, writer = await asyncio.open_connection(*address)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        await writer.drain()
        await until(lambda: chain.deployment.front.under_way == 1)
        writer.close()
        await until(lambda: chain.deployment.front.under_way == 0)
    assert seen(upstream) == 0


async def test_a_full_queue_is_a_429(chains: Any, tokenizer: ChatTokenizer) -> None:
    upstream = answering(tokenizer, ANSWER)
    upstream.faults.append("hang")
    async with chains(upstream, pool={"max_concurrency": 1, "queue_size": 0}) as chain:
        _, first = await connect(chain, chain.body())
        await until(lambda: seen(upstream) == 1)
        answer = await chain.post()
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        first.close()


async def test_a_request_that_is_more_than_its_engines_hold_at_once_is_answered(
    chains: Any, tokenizer: ChatTokenizer
) -> None:
    upstream = answering(tokenizer, ANSWER, interval=0.02)
    async with chains(upstream, pool={"max_concurrency": 2, "queue_size": 1}) as chain:
        answer = (await chain.post(n=5)).json()
        assert [choice["message"]["content"] for choice in answer["choices"]] == [ANSWER] * 5
        async with chain.stream(n=5) as events:
            assert await end_of(events) == "[DONE]"
        prompts = ["하나", "둘", "셋", "넷", "다섯"]
        for fields in ({}, {"echo": True, "logprobs": 1, "max_tokens": 0}):
            batch = await chain.client.post("/v1/completions", json={"model": MODEL, "prompt": prompts, **fields})
            assert (batch.status_code, len(batch.json()["choices"])) == (200, 5)
    assert seen(upstream) == 15


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
async def test_the_wall_clock_may_jump(
    chains: Any, tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    upstream = answering(tokenizer, ANSWER, interval=0.02)
    real = time.time
    async with chains(upstream, timeouts={"between_tokens": 2.0, "total": 20.0}) as chain:
        async with chain.stream() as events:
            await anext(events)
            monkeypatch.setattr(time, "time", lambda: real() + jump)
            assert await end_of(events) == "[DONE]"
        assert await chain.content() == ANSWER
        assert chain.states() == {"a": "ready"}


async def ask_all_the_time(chain: Chain, answers: list[str], stop: asyncio.Event) -> None:
    while not stop.is_set():
        answers.append(await chain.content())


@asynccontextmanager
async def load(chain: Chain, clients: int = 4) -> AsyncIterator[list[str]]:
    """Clients that ask all the time, and the answers they have; an error of theirs fails the test."""
    answers: list[str] = []
    stop = asyncio.Event()
    asking = [asyncio.create_task(ask_all_the_time(chain, answers, stop)) for _ in range(clients)]
    try:
        yield answers
    finally:
        stop.set()
        await asyncio.gather(*asking)


async def more(answers: list[str], count: int = 10) -> None:
    """Return when so many more answers have come."""
    before = len(answers)
    await until(lambda: len(answers) >= before + count)


async def test_a_reload_under_load_loses_nothing(chains: Any, tokenizer: ChatTokenizer) -> None:
    first = answering(tokenizer, ANSWER, interval=0.01, chunk=4)
    second = answering(tokenizer, ANSWER, interval=0.01, chunk=4)
    async with serving(second.app()) as url, chains(first) as chain, load(chain) as answers:
        await more(answers)
        chain.config["models"][0]["replicas"].append(replica("b", url))
        chain.write()
        assert await chain.deployment.reload() == [f"model {MODEL}: replica b added"]
        await until(lambda: chain.states() == {"a": "ready", "b": "ready"})
        del chain.config["models"][0]["replicas"][0]
        chain.write()
        assert await chain.deployment.reload() == [f"model {MODEL}: replica a removed once it has finished"]
        await until(lambda: chain.states() == {"b": "ready"})
        await more(answers)
        chain.config["models"][0]["pool"] = QUICK | {"policy": "least_load"}
        chain.write()
        assert await chain.deployment.reload() == [f"model {MODEL} changed"]
        await more(answers)
    assert set(answers) == {ANSWER}
    assert not first.left
    assert not second.left


async def test_a_replica_that_moves_to_another_url_is_replaced_under_load(
    chains: Any, tokenizer: ChatTokenizer
) -> None:
    first, second = answering(tokenizer, ANSWER, interval=0.01), answering(tokenizer, ANSWER, interval=0.01)
    async with serving(second.app()) as url, chains(first) as chain:
        async with chain.stream() as events:
            await anext(events)
            chain.config["models"][0]["replicas"] = [replica("a", url)]
            chain.write()
            await chain.deployment.reload()
            await until(lambda: chain.states() == {"a": "draining", "a.2": "ready"})
            assert await chain.content() == ANSWER
            assert await end_of(events) == "[DONE]"
        await until(lambda: chain.states() == {"a.2": "ready"})
    assert (seen(first), seen(second)) == (1, 1)


async def test_an_answer_in_parts_ends_where_it_began_even_if_its_pool_is_replaced(
    chains: Any, tokenizer: ChatTokenizer
) -> None:
    # Reasoning that the budget ends, and then the answer: two requests to the engine.
    upstream = VllmUpstream(tokens=(*tokenizer.encode(ANSWER), *tokenizer.end_ids[:1]), interval=0.05)
    async with chains(upstream) as chain:
        async with chain.stream(thinking_token_budget=6) as events:
            await anext(events)
            chain.config["models"][0]["pool"] = QUICK | {"queue_size": 3}
            chain.write()
            assert await chain.deployment.reload() == [f"model {MODEL} changed"]
            assert seen(upstream) == 1
            assert await end_of(events) == "[DONE]"
        assert seen(upstream) == 2


async def test_a_drain_under_load_loses_nothing(chains: Any, tokenizer: ChatTokenizer) -> None:
    upstreams = [answering(tokenizer, ANSWER, interval=0.01, chunk=4) for _ in range(2)]
    async with chains(*upstreams, pool={"policy": "least_load"}) as chain, load(chain) as answers:
        await more(answers)
        await chain.deployment.drain_replica(MODEL, "a")
        pool = chain.deployment.models.get(MODEL).pool
        await until(lambda: {r.name: r.running for r in pool.snapshot().replicas}["a"] == 0)
        before = seen(upstreams[0])
        await more(answers)
        assert seen(upstreams[0]) == before
        assert chain.states() == {"a": "draining", "b": "ready"}
    assert set(answers) == {ANSWER}


async def test_a_wrong_configuration_changes_nothing(chains: Any, tokenizer: ChatTokenizer) -> None:
    upstream = answering(tokenizer, ANSWER)
    async with chains(upstream) as chain:
        chain.path.write_text("models: [{name: x, tokeniser: y}]")
        with pytest.raises(Exception, match=r"models\[0\].tokeniser: Extra inputs"):
            await chain.deployment.reload()
        assert await chain.content() == ANSWER


@pytest.fixture
def upstream_url(tokenizer: ChatTokenizer, tmp_path: Path) -> Iterator[str]:
    """A slow upstream in a process of its own."""
    tokens = answering(tokenizer, ANSWER).tokens
    code = (
        "import asyncio\n"
        "from support.upstream_servers import VllmUpstream, serving\n"
        "async def main():\n"
        f"    async with serving(VllmUpstream(tokens={tokens!r}, interval=0.05).app()) as url:\n"
        "        print(url, flush=True)\n"
        "        await asyncio.sleep(120)\n"
        "asyncio.run(main())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT / "tests")
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def gateway_process(upstream_url: str, tokenizer_dir: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """``trillion-serve serve --config`` in front of it, in a process of its own that can import no engine."""
    path = tmp_path / "gateway.yaml"
    model = {"name": MODEL, "tokenizer": str(tokenizer_dir), "replicas": [replica("a", upstream_url)], "pool": QUICK}
    path.write_text(
        yaml.safe_dump({"models": [model], "server": {"port": 0, "drain_delay": 2.0, "shutdown_timeout": 20}})
    )
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'vllm', 'sglang']))\n"
        "from trillion_serve.cli.main import main; main()"
    )
    command = [sys.executable, "-c", code, "serve", "--config", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def test_sigterm_under_load_finishes_what_is_under_way(gateway_process: subprocess.Popen[str]) -> None:
    assert gateway_process.stdout is not None
    line = next(line for line in gateway_process.stdout if line.startswith("Serving "))
    body = {"model": MODEL, "messages": [{"role": "user", "content": "둘은?"}]}
    url = line.split(" at ")[1].strip().removesuffix("/v1")
    async with httpx.AsyncClient(base_url=url, timeout=20) as client:
        asking = [asyncio.create_task(client.post("/v1/chat/completions", json=body)) for _ in range(4)]
        await asyncio.sleep(0.4)
        gateway_process.send_signal(signal.SIGTERM)
        # For drain_delay the gateway says that it is going, and still takes what comes.
        while (ready := await client.get("/ready")).status_code == 200:
            pass
        late = await client.post("/v1/chat/completions", json=body)
        answers = await asyncio.gather(*asking)
    assert (ready.status_code, ready.json()) == (503, {"status": "draining"})
    assert ready.headers["connection"] == late.headers["connection"] == "close"
    assert [answer.json()["choices"][0]["message"]["content"] for answer in (*answers, late)] == [ANSWER] * 5
    assert await asyncio.to_thread(gateway_process.wait, 20) == 0
