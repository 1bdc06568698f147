"""Who goes where, and who waits."""

import asyncio
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trillion_serve.engines.fake import FakeEngine
from trillion_serve.errors import EngineUnavailableError, OverloadedError
from trillion_serve.routing import BreakerConfig, HealthConfig, PoolConfig
from trillion_serve.routing.admission import Admission, Lease
from trillion_serve.routing.affinity import AffinityConfig
from trillion_serve.routing.breaker import CircuitBreaker
from trillion_serve.routing.replica import Replica

AFFINITY = AffinityConfig(block_tokens=4)


async def admission(replicas: int, **config) -> Admission:
    made = Admission(PoolConfig(affinity=AFFINITY, **config), asyncio.get_running_loop().time)

    async def connect() -> FakeEngine:
        return FakeEngine(lambda request: [1])

    for number in range(replicas):
        name = f"replica-{number}"
        made.replicas[name] = Replica(
            name,
            connect,
            health=HealthConfig(interval=60.0),
            breaker=CircuitBreaker(BreakerConfig(failures=1, open_seconds=60.0)),
            on_change=made.dispatch,
        )
    for replica in made.replicas.values():
        await replica.connected.wait()
    return made


async def closed(made: Admission) -> None:
    for replica in made.replicas.values():
        await replica.close()


async def enter(made: Admission, prompt: int = 0, request_id: str = "r") -> Lease:
    lease = await made.acquire(request_id, made.affinity.block_hashes((prompt,) * 8))
    assert lease is not None
    return lease


def loads(made: Admission) -> list[int]:
    return [replica.running for replica in made.replicas.values()]


@given(
    st.integers(1, 5),
    st.sampled_from([1.0, 1.25, 2.0]),
    st.lists(st.one_of(st.integers(0, 3), st.just("release")), max_size=80),
)
@settings(max_examples=60, deadline=None)
def test_no_replica_gets_more_than_its_share_and_a_prompt_stays_while_it_may(replicas, factor, steps):
    async def run() -> None:
        made = await admission(replicas, load_factor=factor)
        leases: list[Lease] = []
        homes: dict[int, str] = {}
        for step in steps:
            if step == "release":
                if leases:
                    made.release(leases.pop(0))
                continue
            bound = math.ceil(factor * (sum(loads(made)) + 1) / replicas)
            home = made.replicas.get(homes.get(step, ""))
            stays = home is not None and home.running < bound
            lease = await enter(made, step)
            leases.append(lease)
            assert lease.replica.running <= bound
            if stays:
                assert lease.replica is home
            homes[step] = lease.replica.name
        for lease in leases:
            made.release(lease)
        assert loads(made) == [0] * replicas
        await closed(made)

    asyncio.run(run())


async def test_least_load_keeps_replicas_level():
    made = await admission(3, policy="least_load")
    for number in range(9):
        await enter(made, prompt=0)
        assert max(loads(made)) - min(loads(made)) <= 1, number
    await closed(made)


async def test_a_request_that_failed_somewhere_goes_elsewhere_if_it_can():
    made = await admission(2)
    first = await enter(made, 1)
    other = await made.acquire("r", made.affinity.block_hashes((1,) * 8), {first.replica.name})
    assert other is not None
    assert other.replica is not first.replica
    everywhere = await made.acquire("r", made.affinity.block_hashes((1,) * 8), set(made.replicas))
    assert everywhere is not None
    await closed(made)


async def test_who_waits_is_let_in_in_turn():
    made = await admission(1, max_concurrency=2)
    leases = [await enter(made), await enter(made)]
    order: list[int] = []

    async def wait(number: int) -> None:
        lease = await enter(made)
        order.append(number)
        made.release(lease)

    tasks = [asyncio.create_task(wait(number)) for number in range(5)]
    await asyncio.sleep(0.01)
    assert (made.waiting, order) == (5, [])
    made.release(leases.pop())
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 4]
    assert (made.waiting, loads(made)) == (0, [1])
    await closed(made)


async def test_a_full_queue_and_a_long_wait_say_when_to_come_back():
    made = await admission(1, max_concurrency=1, queue_size=1, queue_timeout=0.2)
    lease = await enter(made)
    waiting = asyncio.create_task(enter(made))
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError, match="1 requests are waiting") as full:
        await enter(made)
    with pytest.raises(OverloadedError, match=r"within 0\.2 s") as late:
        await waiting
    assert 1.0 <= full.value.retry_after <= 60.0
    assert 1.0 <= late.value.retry_after <= 60.0
    assert (made.waiting, made.refused) == (0, 2)
    made.release(lease)
    made.release(await enter(made))
    await closed(made)


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_wait_that_is_cancelled_loses_no_place(moment):
    made = await admission(1, max_concurrency=1)
    lease = await enter(made)
    waiting = asyncio.create_task(enter(made))
    await asyncio.sleep(0)
    if moment == "before":
        waiting.cancel()
        made.release(lease)
    else:
        made.release(lease)
        waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert (made.waiting, loads(made)) == (0, [0])
    await closed(made)


async def test_giving_up_ends_a_wait_and_lets_the_next_one_in():
    made = await admission(1, max_concurrency=1)
    lease = await enter(made)
    first = asyncio.create_task(made.acquire("first", [1]))
    second = asyncio.create_task(made.acquire("second", [1]))
    await asyncio.sleep(0)
    made.give_up("first")
    assert await first is None
    made.release(lease)
    assert await second is not None
    await closed(made)


async def test_without_a_replica_that_takes_requests_nobody_waits():
    made = await admission(2, max_concurrency=1)
    leases = [await enter(made, 0), await enter(made, 1)]
    waiting = [asyncio.create_task(enter(made)) for _ in range(3)]
    await asyncio.sleep(0)
    for lease in leases:
        lease.failed(OSError("gone"))
    made.release(leases[0])
    for wait in waiting:
        with pytest.raises(EngineUnavailableError, match="replica-0 is broken, replica-1 is broken"):
            await wait
    with pytest.raises(EngineUnavailableError, match="broken"):
        await enter(made)
    await closed(made)
