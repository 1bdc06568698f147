"""Engines behind HTTP, against servers on real sockets that speak vLLM's and SGLang's wire forms."""

import asyncio
import socket
from collections import deque
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.upstream_servers import SglangUpstream, Upstream, VllmUpstream, logprob, serving, until
from trillion_serve.engines.http import HttpEngine, HttpOptions
from trillion_serve.engines.http_sglang import SglangHttpEngine
from trillion_serve.engines.http_stream import FrameDecoder
from trillion_serve.engines.http_vllm import VllmHttpEngine
from trillion_serve.engines.protocol import EngineStats, GenerateRequest, Grammar, SamplingParams, TokenDelta
from trillion_serve.errors import (
    EngineDeadError,
    EngineError,
    EngineStartError,
    EngineUnavailableError,
    OverloadedError,
    RequestRefusedError,
)

PROMPT = (1, 2, 3, 4)
SAMPLING = SamplingParams(max_tokens=8, temperature=0.0, stop_token_ids=(15,))
PATIENCE = HttpOptions(url="", first_token_timeout=30.0, between_tokens_timeout=30.0, total_timeout=60.0)
IMPATIENT = {
    "hang": replace(PATIENCE, first_token_timeout=2.5),
    "hang_later": replace(PATIENCE, between_tokens_timeout=2.5),
}


def request(request_id: str = "r1", **sampling) -> GenerateRequest:
    return GenerateRequest(request_id, PROMPT, replace(SAMPLING, **sampling))


@asynccontextmanager
async def connected(upstream: Upstream, options: HttpOptions = PATIENCE):
    kind = VllmHttpEngine if isinstance(upstream, VllmUpstream) else SglangHttpEngine
    async with serving(upstream.app()) as url:
        engine = await kind.connect(replace(options, url=url))
        try:
            yield engine
        finally:
            await engine.close()


async def answer(engine: HttpEngine, asked: GenerateRequest) -> list[TokenDelta]:
    async with aclosing(engine.generate(asked)) as deltas:
        return [delta async for delta in deltas]


def tokens(deltas: list[TokenDelta]) -> tuple[int, ...]:
    return sum((delta.token_ids for delta in deltas), ())


UPSTREAMS = {
    "vllm": VllmUpstream,
    "sglang": SglangUpstream,
    "sglang incremental": lambda **kwargs: SglangUpstream(incremental=True, **kwargs),
}


@pytest.fixture(params=UPSTREAMS)
def make_upstream(request):
    return UPSTREAMS[request.param]


@given(st.lists(st.binary(max_size=12).map(lambda b: b.hex().encode()), max_size=5), st.data())
def test_frames_come_out_whole_however_the_stream_is_cut(payloads, data):
    stream = b"".join(b": keep-alive\n\nevent: x\ndata: " + payload + b"\r\n\r\n" for payload in payloads)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    decoder = FrameDecoder()
    frames = [f for a, b in pairwise([0, *cuts, len(stream)]) for f in decoder.decode(stream[a:b])]
    assert frames == payloads


@pytest.mark.parametrize("chunk", [1, 2, 5])
async def test_an_answer_comes_back_token_by_token(make_upstream, chunk):
    upstream = make_upstream(chunk=chunk, interval=0.02)
    async with connected(upstream) as engine:
        deltas = await answer(engine, request())
    assert tokens(deltas) == (11, 12, 13, 14, 15)
    assert [len(delta.token_ids) for delta in deltas] == [len(part) for part in upstream.chunks()]
    assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + ["stop"]
    assert deltas[-1].prompt_tokens == 4
    assert deltas[-1].cached_tokens == 3
    assert all(delta.logprobs is None for delta in deltas)


async def test_an_answer_that_was_cut_off_says_so(make_upstream):
    async with connected(make_upstream(stops=False)) as engine:
        assert (await answer(engine, request()))[-1].finish_reason == "length"


async def test_events_that_arrive_together_become_one_delta(make_upstream):
    upstream = make_upstream(tokens=tuple(range(200)))
    async with connected(upstream) as engine, aclosing(engine.generate(request())) as deltas:
        first = await anext(deltas)
        await until(lambda: upstream.ended)
        rest = [delta async for delta in deltas]
    assert tokens([first, *rest]) == tuple(range(200))
    assert len(rest) < 20


@pytest.mark.parametrize("top", [0, 1, 3])
@pytest.mark.parametrize("chunk", [1, 2])
async def test_log_probabilities_belong_to_their_tokens(make_upstream, top, chunk):
    async with connected(make_upstream(chunk=chunk, interval=0.005)) as engine:
        deltas = await answer(engine, request(top_logprobs=top))
    for delta in deltas:
        assert [entry.token_id for entry in delta.logprobs] == list(delta.token_ids)
        for entry in delta.logprobs:
            assert entry.logprob == logprob(entry.token_id)
            assert entry.top == tuple((entry.token_id + k, logprob(entry.token_id + k)) for k in range(top))


async def test_vllm_is_sent_token_ids_and_every_sampling_parameter():
    upstream = VllmUpstream()
    async with connected(upstream) as engine:
        await answer(engine, request(seed=7, top_k=5, logit_bias={3: -2.0}, top_logprobs=2, min_tokens=1))
    assert upstream.requests == [
        {
            "model": "base",
            "prompt": [1, 2, 3, 4],
            "request_id": "r1",
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            "max_tokens": 8,
            "min_tokens": 1,
            "temperature": 0.0,
            "top_p": 1.0,
            "top_k": 5,
            "min_p": 0.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "repetition_penalty": 1.0,
            "stop_token_ids": [15],
            "ignore_eos": True,
            "seed": 7,
            "logit_bias": {"3": -2.0},
            "logprobs": 2,
            "return_tokens_as_token_ids": True,
        }
    ]


async def test_sglang_is_sent_token_ids_and_every_sampling_parameter():
    upstream = SglangUpstream()
    async with connected(upstream) as engine:
        await answer(engine, request(seed=7, logit_bias={3: -2.0}, top_logprobs=2, min_tokens=1))
        await answer(engine, request(stop_token_ids=(), top_k=5))
    first, second = upstream.requests
    assert first == {
        "input_ids": [1, 2, 3, 4],
        "rid": "r1.",
        "stream": True,
        "return_logprob": True,
        "top_logprobs_num": 2,
        "sampling_params": {
            "max_new_tokens": 8,
            "min_new_tokens": 1,
            "temperature": 0.0,
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "repetition_penalty": 1.0,
            "stop_token_ids": [15],
            "ignore_eos": False,
            "sampling_seed": 7,
            "logit_bias": {"3": -2.0},
        },
    }
    assert second["sampling_params"]["ignore_eos"] is True
    assert second["sampling_params"]["top_k"] == 5
    assert "return_logprob" not in second


SCHEMA = Grammar("json_schema", '{"type": "integer"}')
REGEX = Grammar("regex", "[가-힣]+")
EBNF = Grammar("ebnf", 'root ::= "네"')


@pytest.mark.parametrize(
    ("grammar", "vllm", "sglang"),
    [
        (SCHEMA, {"json": '{"type": "integer"}'}, {"json_schema": '{"type": "integer"}'}),
        (REGEX, {"regex": "[가-힣]+"}, {"regex": "[가-힣]+"}),
        (EBNF, {"grammar": 'root ::= "네"'}, {"ebnf": 'root ::= "네"'}),
    ],
)
async def test_each_server_is_told_the_grammar_in_its_own_words(grammar, vllm, sglang):
    upstreams = VllmUpstream(), SglangUpstream()
    for upstream in upstreams:
        async with connected(upstream) as engine:
            await answer(engine, request())
            await answer(engine, request(grammar=grammar))
    (free, bound), (free_params, bound_params) = (
        upstreams[0].requests,
        [body["sampling_params"] for body in upstreams[1].requests],
    )
    assert bound == free | {"structured_outputs": vllm, "ignore_eos": False}
    assert bound_params == free_params | sglang


@pytest.mark.parametrize("top", [None, 1])
@pytest.mark.parametrize("chunk", [1, 5])
async def test_the_token_that_ends_a_grammar_comes_only_if_it_is_a_stop_token_of_the_request(make_upstream, chunk, top):
    async with connected(make_upstream(chunk=chunk)) as engine:
        ours = await answer(engine, request(grammar=SCHEMA, top_logprobs=top))
        foreign = await answer(engine, request(grammar=SCHEMA, top_logprobs=top, stop_token_ids=(99,)))
    assert (tokens(ours), tokens(foreign)) == ((11, 12, 13, 14, 15), (11, 12, 13, 14))
    assert ours[-1].finish_reason == foreign[-1].finish_reason == "stop"
    for delta in foreign:
        assert delta.logprobs is None if top is None else len(delta.logprobs) == len(delta.token_ids)


async def test_an_answer_under_a_grammar_that_is_cut_off_keeps_its_last_token(make_upstream):
    async with connected(make_upstream(stops=False)) as engine:
        assert tokens(await answer(engine, request(grammar=SCHEMA, stop_token_ids=(99,)))) == (11, 12, 13, 14, 15)


async def test_a_grammar_that_cannot_hold_is_refused_before_it_is_sent(make_upstream):
    upstream = make_upstream()
    async with connected(upstream) as engine:
        with pytest.raises(RequestRefusedError, match=r"the grammar \(regex\) is empty"):
            await answer(engine, request(grammar=Grammar("regex", "")))
        with pytest.raises(RequestRefusedError, match="min_tokens 2 cannot hold together with a grammar"):
            await answer(engine, request(grammar=SCHEMA, min_tokens=2))
    assert upstream.requests == []


async def test_tokens_that_sglang_does_not_know_are_refused_before_they_are_sent():
    upstream = SglangUpstream()
    async with connected(upstream) as engine:
        for token_ids in ((5, 512), (-1,)):
            refused = f"token id {token_ids[-1]} is out of vocabulary: the model knows 0 to 511"
            with pytest.raises(RequestRefusedError, match=refused):
                await answer(engine, replace(request(), prompt_token_ids=token_ids))
            with pytest.raises(RequestRefusedError, match=refused):
                await engine.score(token_ids)
        assert upstream.requests == []
        assert tokens(await answer(engine, replace(request(), prompt_token_ids=(5, 511)))) == upstream.tokens


async def test_a_server_is_not_blamed_for_an_answer_that_fails_under_a_grammar(make_upstream):
    upstream = make_upstream(faults=deque(["error_event", "error_event"]))
    async with connected(upstream) as engine:
        with pytest.raises(RequestRefusedError, match=r"the grammar \(regex\) cannot be followed.*out of memory"):
            await answer(engine, request(grammar=REGEX))
        with pytest.raises(EngineUnavailableError, match="out of memory"):
            await answer(engine, request())


async def test_stats_are_the_sums_over_a_servers_engines():
    async with connected(VllmUpstream()) as engine:
        assert await engine.stats() == EngineStats(kv_cache_usage=0.375, running=7, waiting=2)
    async with connected(SglangUpstream()) as engine:
        assert await engine.stats() == EngineStats(kv_cache_usage=0.375, running=5, waiting=2)


async def test_of_a_server_that_tells_no_figures_our_own_requests_are_known(make_upstream):
    async with connected(make_upstream(measured=False, interval=0.02)) as engine:
        async with aclosing(engine.generate(request())) as deltas:
            await anext(deltas)
            assert await engine.stats() == EngineStats(kv_cache_usage=None, running=1, waiting=0)
        assert (await engine.stats()).running == 0


async def test_info_says_what_the_server_runs():
    async with connected(VllmUpstream()) as engine:
        vllm = engine.info
    assert (vllm.engine, vllm.model, vllm.context_length) == ("vllm 0.32.0", "/weights/base", 2048)
    assert (vllm.kv_capacity_tokens, vllm.kv_bytes) == (5000 + 4 * 16, 2048)
    async with connected(SglangUpstream()) as engine:
        sglang = engine.info
    assert (sglang.engine, sglang.model, sglang.context_length) == ("sglang 0.5.23", "/weights/base", 4096)
    assert (sglang.kv_capacity_tokens, sglang.dtype) == (9000, "bfloat16")


async def test_connecting_to_the_wrong_model_or_server_says_which(make_upstream):
    upstream = make_upstream()
    with pytest.raises(EngineStartError, match=r"serves base.*expected other"):
        async with connected(upstream, replace(PATIENCE, model="other")):
            pass
    wrong_kind = SglangHttpEngine if isinstance(upstream, VllmUpstream) else VllmHttpEngine
    async with serving(upstream.app()) as url:
        with pytest.raises(EngineStartError, match="is not this kind of server"):
            await wrong_kind.connect(replace(PATIENCE, url=url))


@pytest.mark.parametrize("top", [0, 2])
async def test_score_gives_the_prompts_own_log_probabilities(make_upstream, top):
    async with connected(make_upstream()) as engine:
        scored = await engine.score([5, 6, 7], top)
        assert await engine.score([5], top) == []
        with pytest.raises(RequestRefusedError, match="nothing to score"):
            await engine.score([], top)
    assert [(entry.token_id, entry.logprob) for entry in scored] == [(6, logprob(6)), (7, logprob(7))]
    assert [entry.top for entry in scored] == [tuple((t + k, logprob(t + k)) for k in range(top)) for t in (6, 7)]


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        ("400", RequestRefusedError, "status 400"),
        ("404", RequestRefusedError, "status 404"),
        ("429", OverloadedError, "status 429"),
        ("500", EngineUnavailableError, "status 500"),
        ("503", EngineUnavailableError, "status 503"),
        ("break", EngineUnavailableError, "payload|broke off|closed"),
        ("garbage", EngineUnavailableError, "cannot be read"),
        ("error_event", EngineUnavailableError, "CUDA out of memory"),
        ("hang", EngineUnavailableError, r"no token within 2\.5 s"),
        ("hang_later", EngineUnavailableError, r"no token within 2\.5 s"),
    ],
)
async def test_faults_become_typed_errors_and_the_next_request_is_fine(make_upstream, fault, kind, message):
    upstream = make_upstream()
    async with connected(upstream, IMPATIENT.get(fault, PATIENCE)) as engine:
        upstream.faults.append(fault)
        with pytest.raises(kind, match=message):
            await answer(engine, request("r1"))
        if fault.isdigit():
            assert not upstream.aborted, "nothing runs there that could be stopped"
        assert tokens(await answer(engine, request("r2"))) == upstream.tokens


async def test_retry_after_comes_through():
    upstream = VllmUpstream()
    upstream.faults.append("429")
    async with connected(upstream) as engine:
        with pytest.raises(OverloadedError) as raised:
            await answer(engine, request())
    assert raised.value.retry_after == 7.0


async def test_tokens_before_a_break_are_delivered(make_upstream):
    upstream = make_upstream(interval=0.02)
    upstream.faults.append("break")
    seen: list[int] = []
    async with connected(upstream) as engine:
        with pytest.raises(EngineUnavailableError):
            async for delta in engine.generate(request()):
                seen += delta.token_ids
    assert seen == [11]


async def test_a_whole_answer_may_take_no_longer_than_the_total_timeout(make_upstream):
    upstream = make_upstream(interval=0.1)
    async with connected(upstream, replace(PATIENCE, total_timeout=0.25)) as engine:
        with pytest.raises(EngineError, match=r"longer than 0\.25 s") as raised:
            await answer(engine, request())
    assert not isinstance(raised.value, EngineUnavailableError)


async def test_each_token_gives_the_next_one_its_time(make_upstream):
    upstream = make_upstream(interval=0.5)
    options = replace(PATIENCE, first_token_timeout=2.0, between_tokens_timeout=2.0)
    async with connected(upstream, options) as engine:
        assert tokens(await answer(engine, request())) == upstream.tokens, "2.5 s in all, with 2 s for each"


async def test_a_slow_reader_is_not_taken_for_a_hung_server(make_upstream):
    upstream = make_upstream(interval=0.02)
    options = replace(PATIENCE, between_tokens_timeout=0.5)
    async with connected(upstream, options) as engine, aclosing(engine.generate(request())) as deltas:
        read = [await anext(deltas), await anext(deltas)]
        await asyncio.sleep(0.8)
        read += [delta async for delta in deltas]
    assert tokens(read) == upstream.tokens


@pytest.mark.parametrize("fault", ["hang", "hang_later"])
@pytest.mark.parametrize("how", ["close", "cancel", "abort"])
async def test_leaving_reaches_the_server_within_100_milliseconds(make_upstream, fault, how):
    upstream = make_upstream()
    upstream.faults.append(fault)
    async with connected(upstream) as engine:
        seen: list[TokenDelta] = []

        async def consume() -> None:
            async with aclosing(engine.generate(request())) as deltas:
                async for delta in deltas:
                    seen.append(delta)
                    if how == "close":
                        return

        task = asyncio.create_task(consume())
        await until(lambda: upstream.requests and (fault == "hang" or seen or task.done()))
        left_at = asyncio.get_running_loop().time()
        if how == "abort":
            await engine.abort("r1")
            await task
        else:
            task.cancel()
        told = upstream.left if isinstance(upstream, VllmUpstream) else upstream.aborted
        await until(lambda: told)
        assert next(iter(told.values())) - left_at < 0.1
        assert list(told) == (["r1"] if told is upstream.left else ["r1."])


async def test_aborting_what_is_not_running_is_no_error(make_upstream):
    upstream = make_upstream()
    async with connected(upstream) as engine:
        await answer(engine, request())
        await engine.abort("r1")
        await engine.abort("unknown")
    assert not upstream.aborted


async def test_connections_are_used_again_and_have_no_delay(make_upstream, monkeypatch):
    upstream = make_upstream()
    async with connected(upstream) as engine:
        opened: list[socket.socket] = []
        connect = asyncio.get_running_loop().create_connection

        async def counted(*args, **kwargs):
            transport, protocol = await connect(*args, **kwargs)
            opened.append(transport.get_extra_info("socket"))
            return transport, protocol

        monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", counted)
        for number in range(20):
            # As the gateway does: it leaves right after the last delta, without asking for more.
            async with aclosing(engine.generate(request(f"r{number}"))) as deltas:
                async for delta in deltas:
                    if delta.finish_reason:
                        break
        assert len(opened) <= 1
        assert all(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for sock in opened)
    assert not upstream.left
    assert not upstream.aborted


async def test_a_server_that_hangs_is_unavailable_to_every_question(make_upstream):
    upstream = make_upstream()
    async with connected(upstream, replace(PATIENCE, health_timeout=2.0, first_token_timeout=2.0)) as engine:
        upstream.hung = True
        with pytest.raises(EngineUnavailableError, match="no answer within 2 s"):
            await engine.health()
        with pytest.raises(EngineUnavailableError, match="no answer within 2 s"):
            await engine.score([1, 2])


async def test_a_key_is_sent_and_never_shown(make_upstream):
    upstream = make_upstream(key="secret")
    options = replace(PATIENCE, api_key="secret")
    async with connected(upstream, options) as engine:
        assert tokens(await answer(engine, request())) == upstream.tokens
        upstream.key = "another"
        with pytest.raises(RequestRefusedError, match="401"):
            await answer(engine, request())
    assert "secret" not in repr(options)
    with pytest.raises(EngineStartError, match="wants another key"):
        async with connected(upstream, options):
            pass


async def test_a_server_that_is_gone_is_unavailable_and_a_closed_engine_dead(make_upstream):
    upstream = make_upstream()
    async with connected(upstream) as engine:
        await engine.health()
        upstream.healthy = False
        with pytest.raises(EngineUnavailableError, match="503"):
            await engine.health()
        await engine.close()
        with pytest.raises(EngineDeadError):
            await answer(engine, request())
    free = socket.create_server(("127.0.0.1", 0))
    port = free.getsockname()[1]
    free.close()
    with pytest.raises(EngineUnavailableError, match="Cannot connect"):
        await type(engine).connect(HttpOptions(url=f"http://127.0.0.1:{port}"))
