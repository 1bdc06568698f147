"""A pool over real HTTP replicas: faults, recovery, draining, and requests that are left."""

import asyncio
import itertools
import math
import signal
import socket
import sys
import time
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path

import pytest

from support.upstream_servers import SglangUpstream, Upstream, VllmUpstream, logprob, serving, until
from trillion_model.errors import ConfigError
from trillion_serve.engines.http import HttpOptions
from trillion_serve.engines.http_sglang import SglangHttpEngine
from trillion_serve.engines.http_vllm import VllmHttpEngine
from trillion_serve.engines.protocol import EngineStats, GenerateRequest, SamplingParams
from trillion_serve.errors import (
    EngineDeadError,
    EngineError,
    EngineStartError,
    EngineUnavailableError,
    OverloadedError,
    RequestRefusedError,
    ServeError,
)
from trillion_serve.routing import BreakerConfig, Connect, HealthConfig, Pool, PoolConfig, RetryConfig
from trillion_serve.routing.breaker import Clock

ANSWER = (11, 12, 13, 14, 15)
RETRY = RetryConfig(attempts=3, first_wait=0.01, longest_wait=0.05)
CALM = HealthConfig(interval=60.0)
WATCHFUL = HealthConfig(interval=0.02, timeout=5.0, failures=2)
numbers = itertools.count()


def connect_to(url: str, kind=VllmHttpEngine, **options) -> Connect:
    return lambda: kind.connect(HttpOptions(url=url, **options))


@asynccontextmanager
async def pool_of(*upstreams: Upstream, options: dict | None = None, clock: Clock = time.monotonic, **config):
    """A pool whose replicas are called "0", "1" and so on."""
    async with AsyncExitStack() as stack:
        pool = Pool(PoolConfig(**({"retry": RETRY, "health": CALM, "drain_timeout": 10.0} | config)), clock=clock)
        for number, upstream in enumerate(upstreams):
            url = await stack.enter_async_context(serving(upstream.app()))
            kind = VllmHttpEngine if isinstance(upstream, VllmUpstream) else SglangHttpEngine
            pool.add(str(number), connect_to(url, kind, **(options or {})))
        stack.push_async_callback(pool.close)
        for number in range(len(upstreams)):
            await until(lambda n=number: states(pool)[str(n)] == "ready")
        yield pool


def states(pool: Pool) -> dict[str, str]:
    return {replica.name: str(replica.state) for replica in pool.snapshot().replicas}


async def ask(pool: Pool, prompt: int = 1, request_id: str | None = None) -> tuple[int, ...]:
    request = GenerateRequest(request_id or f"r{next(numbers)}", (prompt,) * 70, SamplingParams(max_tokens=8))
    async with aclosing(pool.generate(request)) as deltas:
        return tuple([token async for delta in deltas for token in delta.token_ids])


async def home_of(pool: Pool, upstreams, prompt: int = 1) -> int:
    """The number of the replica that a prompt goes to."""
    before = [len(upstream.requests) for upstream in upstreams]
    await ask(pool, prompt)
    return next(n for n, upstream in enumerate(upstreams) if len(upstream.requests) > before[n])


async def test_vllm_and_sglang_serve_side_by_side_as_one_engine():
    upstreams = VllmUpstream(), SglangUpstream()
    async with pool_of(*upstreams, policy="least_load") as pool:
        await pool.health()
        assert [await ask(pool) for _ in range(4)] == [ANSWER] * 4
        assert [len(upstream.requests) for upstream in upstreams] == [2, 2]
        assert pool.info.engine == "sglang 0.5.23 + vllm 0.32.0"
        assert (pool.info.context_length, pool.info.kv_capacity_tokens) == (2048, 5064 + 9000)
        scored = await pool.score([5, 6, 7], 1)
    assert [(entry.token_id, entry.logprob) for entry in scored] == [(6, logprob(6)), (7, logprob(7))]


async def test_its_figures_are_those_of_the_replicas_that_tell_them():
    upstreams = VllmUpstream(), SglangUpstream(), VllmUpstream(measured=False), SglangUpstream()
    async with pool_of(*upstreams, options={"health_timeout": 2.0}) as pool:
        upstreams[3].hung = True
        assert await pool.stats() == EngineStats(kv_cache_usage=0.375, running=7 + 5, waiting=2 + 2)


async def test_a_conversation_stays_with_its_replica():
    upstreams = VllmUpstream(), VllmUpstream(), VllmUpstream()
    async with pool_of(*upstreams) as pool:
        for prompt in range(12):
            home = await home_of(pool, upstreams, prompt)
            assert [await home_of(pool, upstreams, prompt) for _ in range(3)] == [home] * 3
    assert all(upstream.requests for upstream in upstreams)


@pytest.mark.parametrize("fault", ["500", "503", "garbage", "error_event", "hang", "429"])
async def test_a_request_that_fails_before_its_first_token_succeeds_elsewhere(fault):
    upstreams = VllmUpstream(), VllmUpstream()
    options = {"first_token_timeout": 2.5 if fault == "hang" else 30.0}
    async with pool_of(*upstreams, options=options) as pool:
        home = await home_of(pool, upstreams)
        upstreams[home].faults.append(fault)
        assert await ask(pool) == ANSWER
        assert [len(upstream.requests) for upstream in upstreams] == ([2, 1] if home == 0 else [1, 2])
        snapshot = pool.snapshot()
    assert snapshot.retries == 1
    assert snapshot.replicas[home].failures == (0 if fault == "429" else 1)
    assert all(replica.running == 0 for replica in snapshot.replicas)


@pytest.mark.parametrize("fault", ["break", "hang_later"])
async def test_after_the_first_token_a_failure_is_told_and_never_retried(fault):
    upstreams = VllmUpstream(interval=0.02), VllmUpstream(interval=0.02)
    async with pool_of(*upstreams, options={"between_tokens_timeout": 2.5}) as pool:
        for upstream in upstreams:
            upstream.faults.append(fault)
        with pytest.raises(EngineUnavailableError):
            await ask(pool)
        assert sum(len(upstream.requests) for upstream in upstreams) == 1
        assert pool.snapshot().retries == 0
        assert sum(replica.failures for replica in pool.snapshot().replicas) == 1


async def test_attempts_are_limited():
    upstream = VllmUpstream()
    async with pool_of(upstream) as pool:
        upstream.faults.extend(["500"] * 3)
        with pytest.raises(EngineUnavailableError, match="status 500"):
            await ask(pool)
        assert (len(upstream.requests), pool.snapshot().retries) == (3, 2)
        upstream.faults.extend(["429"] * 3)
        with pytest.raises(OverloadedError) as raised:
            await ask(pool)
        assert raised.value.retry_after == 7.0
        assert await ask(pool) == ANSWER


async def test_a_replica_that_fails_is_left_alone_and_comes_back():
    upstreams = VllmUpstream(), VllmUpstream()
    breaker, now = BreakerConfig(failures=2, open_seconds=30.0), 0.0
    async with pool_of(*upstreams, breaker=breaker, clock=lambda: now) as pool:
        home = await home_of(pool, upstreams)
        upstreams[home].faults.extend(["500"] * 2)
        assert [await ask(pool, 1) for _ in range(2)] == [ANSWER] * 2
        # The prompt has a home elsewhere now, so only a new one would be sent to the replica that fails.
        while states(pool)[str(home)] != "broken":
            await ask(pool, next(numbers))
        sent = len(upstreams[home].requests)
        assert [await ask(pool, prompt) for prompt in range(100, 110)] == [ANSWER] * 10
        assert len(upstreams[home].requests) == sent, "nothing is sent while the breaker is open"
        now += 30.0
        for prompt in range(200, 240):
            assert await ask(pool, prompt) == ANSWER
        assert states(pool)[str(home)] == "ready"
        assert len(upstreams[home].requests) > sent


async def test_a_probes_first_token_lets_the_others_in():
    upstream = VllmUpstream()
    breaker, now = BreakerConfig(failures=1, open_seconds=30.0), 0.0
    async with pool_of(upstream, breaker=breaker, retry=RetryConfig(attempts=1), clock=lambda: now) as pool:
        upstream.faults.extend(["500", "hang_later"])
        with pytest.raises(EngineUnavailableError, match="status 500"):
            await ask(pool)
        with pytest.raises(EngineUnavailableError, match="0 is broken"):
            await ask(pool)
        now += 30.0
        probe = asyncio.create_task(ask(pool))
        await until(lambda: len(upstream.requests) == 2)
        assert await ask(pool) == ANSWER
        assert not probe.done()
        probe.cancel()


@pytest.mark.parametrize("fault", ["400", "401", "404", "422"])
async def test_refusals_are_told_at_once_and_never_trip_the_breaker(fault):
    upstream = VllmUpstream()
    async with pool_of(upstream, breaker=BreakerConfig(failures=1)) as pool:
        for _ in range(10):
            upstream.faults.append(fault)
            with pytest.raises(RequestRefusedError, match=fault):
                await ask(pool)
        assert len(upstream.requests) == 10
        assert states(pool) == {"0": "ready"}
        assert await ask(pool) == ANSWER


async def test_an_unhealthy_replica_gets_nothing_until_it_is_healthy_again():
    upstreams = VllmUpstream(), VllmUpstream()
    async with pool_of(*upstreams, health=WATCHFUL) as pool:
        home = await home_of(pool, upstreams)
        upstreams[home].healthy = False
        await until(lambda: states(pool)[str(home)] == "unhealthy")
        assert await home_of(pool, upstreams) == 1 - home
        assert "503" in pool.snapshot().replicas[home].last_error
        upstreams[1 - home].healthy = False
        await until(lambda: states(pool)[str(1 - home)] == "unhealthy")
        with pytest.raises(EngineUnavailableError, match="0 is unhealthy, 1 is unhealthy"):
            await pool.health()
        with pytest.raises(EngineUnavailableError):
            await ask(pool)
        upstreams[home].healthy = True
        await until(lambda: states(pool)[str(home)] == "ready")
        assert await ask(pool) == ANSWER


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


async def test_a_replica_may_start_late_and_another_never():
    port = free_port()
    pool = Pool(PoolConfig(retry=RETRY, health=WATCHFUL))
    pool.add("late", connect_to(f"http://127.0.0.1:{port}"))
    pool.add("never", connect_to(f"http://127.0.0.1:{free_port()}"))
    with pytest.raises(EngineStartError, match=r"late: .*Cannot connect.*never: .*Cannot connect"):
        await pool.ready(0.3)
    with pytest.raises(EngineUnavailableError, match="no replica has been connected yet"):
        pool.info  # noqa: B018
    async with serving(VllmUpstream().app(), port):
        await pool.ready(10.0)
        assert await ask(pool) == ANSWER
        assert states(pool) == {"late": "ready", "never": "starting"}
        await pool.close()


def _noted(tokens: tuple[int, ...], seen: list[int]) -> tuple[int, ...]:
    seen += tokens
    return tokens


@asynccontextmanager
async def process(port: int):
    """A server in a process of its own, which can be killed."""
    program = (
        "import uvicorn; from support.upstream_servers import VllmUpstream;"
        f"uvicorn.run(VllmUpstream(tokens=tuple(range(100)), interval=0.02).app(), port={port}, log_level='critical')"
    )
    server = await asyncio.create_subprocess_exec(sys.executable, "-c", program, cwd=Path(__file__).parents[2])
    try:
        yield server
    finally:
        if server.returncode is None:
            server.kill()
        await server.wait()


async def test_a_replica_that_is_killed_fails_what_it_had_begun_and_nothing_else():
    port, steady = free_port(), VllmUpstream()
    breaker = BreakerConfig(failures=3, open_seconds=0.2)
    async with process(port) as server, pool_of(steady, policy="least_load", health=WATCHFUL, breaker=breaker) as pool:
        pool.add("killed", connect_to(f"http://127.0.0.1:{port}"))
        await until(lambda: states(pool)["killed"] == "ready", 30.0)
        seen: list[int] = []

        async def ask_and_watch(number: int) -> tuple[int, ...]:
            request = GenerateRequest(f"watched{number}", (number,) * 70, SamplingParams(max_tokens=8))
            async with aclosing(pool.generate(request)) as deltas:
                return tuple([token async for delta in deltas for token in _noted(delta.token_ids, seen)])

        begun = [asyncio.create_task(ask_and_watch(number)) for number in range(8)]
        await until(lambda: seen.count(0) == 4)
        server.send_signal(signal.SIGKILL)
        results = await asyncio.gather(*begun, return_exceptions=True)
        assert [type(result) for result in results].count(EngineUnavailableError) == 4
        assert results.count(ANSWER) == 4
        after = await asyncio.gather(*(ask(pool, prompt) for prompt in range(40)))
        assert after == [ANSWER] * 40
        await until(lambda: states(pool)["killed"] == "unhealthy")
        async with process(port):
            await until(lambda: states(pool)["killed"] in ("ready", "broken"), 30.0)
            await asyncio.sleep(0.25)
            assert tuple(range(100)) in await asyncio.gather(*(ask(pool, prompt) for prompt in range(4)))


@pytest.mark.parametrize("how", ["drain", "remove"])
async def test_draining_loses_nothing(how):
    upstreams = VllmUpstream(interval=0.02), VllmUpstream(interval=0.02)
    async with pool_of(*upstreams, max_concurrency=8, policy="least_load") as pool:
        asked = [asyncio.create_task(ask(pool, prompt)) for prompt in range(40)]
        await until(lambda: pool.snapshot().waiting and upstreams[0].requests)
        assert await getattr(pool, how)("0")
        sent = len(upstreams[0].requests)
        assert sent >= 8
        assert await asyncio.gather(*asked) == [ANSWER] * 40
        assert [await ask(pool, prompt) for prompt in range(5)] == [ANSWER] * 5
        assert len(upstreams[0].requests) == sent
        assert states(pool) == ({"0": "draining", "1": "ready"} if how == "drain" else {"1": "ready"})
    assert not upstreams[0].left


async def test_removing_with_a_deadline_ends_what_is_still_running():
    upstream = VllmUpstream()
    async with pool_of(upstream) as pool:
        upstream.faults.append("hang_later")
        asked = asyncio.create_task(ask(pool))
        await until(lambda: upstream.requests)
        assert not await pool.drain("0", 0.1)
        assert not await pool.remove("0", 0.1)
        assert await asked == ANSWER[:1], "the answer ends without a finish reason"
        await until(lambda: upstream.left)
        with pytest.raises(EngineUnavailableError, match="there is none"):
            await ask(pool)
        assert pool.info.context_length == 2048


async def test_closing_finishes_what_was_begun_and_what_waits():
    upstream = VllmUpstream(interval=0.02)
    async with pool_of(upstream, max_concurrency=2) as pool:
        asked = [asyncio.create_task(ask(pool, prompt)) for prompt in range(6)]
        await until(lambda: pool.snapshot().waiting == 4)
        closing = asyncio.create_task(pool.close())
        await asyncio.sleep(0)
        with pytest.raises(EngineDeadError, match="closed"):
            await ask(pool)
        with pytest.raises(ServeError, match="closing"):
            pool.add("2", connect_to("http://127.0.0.1:1"))
        assert await asyncio.gather(*asked) == [ANSWER] * 6
        await closing
        with pytest.raises(EngineDeadError):
            await pool.health()
    assert not upstream.left


async def test_closing_does_not_wait_for_ever():
    upstream = VllmUpstream()
    async with pool_of(upstream, drain_timeout=0.2) as pool:
        upstream.faults.append("hang")
        asked = asyncio.create_task(ask(pool))
        await until(lambda: upstream.requests)
        await pool.close()
        assert await asked == ()
        await until(lambda: upstream.left)


@pytest.mark.parametrize("how", ["abort", "cancel"])
@pytest.mark.parametrize("stage", ["waiting", "first", "later", "between_attempts"])
async def test_a_request_can_be_left_at_every_stage(stage, how):
    upstream = VllmUpstream(interval=0.01)
    waits = RetryConfig(attempts=5, first_wait=3600.0, longest_wait=3600.0)
    async with pool_of(upstream, max_concurrency=1, retry=waits) as pool:
        upstream.faults.append({"between_attempts": "500", "first": "hang"}.get(stage, "hang_later"))
        first = asyncio.create_task(ask(pool, request_id="first"))
        await until(lambda: upstream.requests)
        left, left_id = first, "first"
        if stage == "waiting":
            left, left_id = asyncio.create_task(ask(pool, request_id="second")), "second"
            await until(lambda: pool.snapshot().waiting)
        elif stage == "between_attempts":
            await until(lambda: pool.snapshot().retries)
        if how == "abort":
            await pool.abort(left_id)
        else:
            left.cancel()
        await asyncio.wait([left], timeout=5.0)
        assert left.done()
        if left is not first:
            await pool.abort("first")
        await asyncio.wait([first], timeout=5.0)
        assert pool.snapshot().waiting == 0
        assert [replica.running for replica in pool.snapshot().replicas] == [0]
        if stage in ("first", "later"):
            await until(lambda: "first" in upstream.left)
        assert await ask(pool) == ANSWER


async def test_steps_of_the_wall_clock_change_nothing(monkeypatch):
    upstreams = VllmUpstream(interval=0.02), VllmUpstream(interval=0.02)
    breaker = BreakerConfig(failures=1, open_seconds=60.0)
    async with pool_of(*upstreams, breaker=breaker, queue_timeout=30.0, max_concurrency=1) as pool:
        home = await home_of(pool, upstreams)
        upstreams[home].faults.append("500")
        assert await ask(pool) == ANSWER
        jumps = itertools.cycle([-1e6, 1e6, 3e8])
        wall = time.time
        monkeypatch.setattr(time, "time", lambda: wall() + next(jumps))
        assert states(pool)[str(home)] == "broken"
        assert await asyncio.gather(*(ask(pool, prompt) for prompt in range(6))) == [ANSWER] * 6
        assert states(pool)[str(home)] == "broken"


async def test_wrong_names_and_figures_are_told():
    async with pool_of(VllmUpstream()) as pool:
        with pytest.raises(ServeError, match="a replica 0 already"):
            pool.add("0", connect_to("http://127.0.0.1:1"))
        with pytest.raises(ServeError, match="no replica x; there are: 0"):
            await pool.drain("x")
    with pytest.raises(ConfigError, match=r"load_factor is 0\.5"):
        PoolConfig(load_factor=0.5)
    with pytest.raises(ConfigError, match="policy is 'random'"):
        PoolConfig(policy="random")
    with pytest.raises(ConfigError, match=r"retry\.attempts is 0"):
        PoolConfig(retry=RetryConfig(attempts=0))
    for seconds in (-1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match=r"queue_timeout is .*, but must be 0 or more, and finite"):
            PoolConfig(queue_timeout=seconds)


async def test_an_answer_that_takes_too_long_is_not_tried_again():
    upstreams = VllmUpstream(interval=0.2), VllmUpstream(interval=0.2)
    async with pool_of(*upstreams, options={"total_timeout": 0.1}) as pool:
        with pytest.raises(EngineError, match=r"longer than 0\.1 s"):
            await ask(pool)
        assert sum(len(upstream.requests) for upstream in upstreams) == 1
        assert [replica.failures for replica in pool.snapshot().replicas] == [0, 0]
