"""The vLLM adapter against a vLLM that really runs, and Transformers as the reference.

One engine serves the whole module: the tests share an event loop with it. The last tests kill and close it.
"""

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import httpx
import jsonschema
import pytest
import pytest_asyncio
import torch
from openai import AsyncOpenAI
from prometheus_client import REGISTRY, Gauge
from transformers import LlamaForCausalLM

from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.engines.protocol import EngineStats, GenerateRequest, Grammar, SamplingParams, TokenDelta
from trillion_serve.engines.vllm import VllmEngine, VllmOptions
from trillion_serve.errors import EngineDeadError, EngineStartError, RequestRefusedError
from trillion_serve.gateway.app import create_app
from trillion_serve.gateway.models import Models, ServedModel
from trillion_serve.gateway.server import Server, listen, url_of

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]
PROMPT = tuple(range(20, 60))
KV_GIB = 0.0625


@pytest.fixture(scope="module")
def our_metric() -> Iterator[Gauge]:
    """A metric of this process under a name like vLLM's own."""
    gauge = Gauge("vllm:ours", "Ours")
    yield gauge
    REGISTRY.unregister(gauge)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(llama_dir: Path, our_metric: Gauge) -> AsyncIterator[VllmEngine]:
    options = VllmOptions(
        str(llama_dir), dtype="float32", kv_cache_memory=KV_GIB, max_num_batched_tokens=512, max_num_seqs=8
    )
    running = await VllmEngine.start(options)
    yield running
    await running.close()


@pytest.fixture(scope="module")
def reference(llama_dir: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(llama_dir, dtype=torch.float32)


async def everything(engine: VllmEngine, sampling: SamplingParams, name: str = "r") -> list[TokenDelta]:
    return [delta async for delta in engine.generate(GenerateRequest(name, PROMPT, sampling))]


def tokens_of(deltas: list[TokenDelta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


async def test_greedy_tokens_are_those_of_transformers(engine: VllmEngine, reference: LlamaForCausalLM) -> None:
    expected = reference.generate(
        torch.tensor([PROMPT]), max_new_tokens=12, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    deltas = await everything(engine, SamplingParams(max_tokens=12, temperature=0.0))
    assert tokens_of(deltas) == expected[0, len(PROMPT) :].tolist()
    assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + ["length"]
    assert {delta.prompt_tokens for delta in deltas} == {len(PROMPT)}


async def test_only_our_stop_tokens_stop(engine: VllmEngine) -> None:
    free = tokens_of(await everything(engine, SamplingParams(max_tokens=12, temperature=0.0)))
    stop = free[4]
    deltas = await everything(engine, SamplingParams(max_tokens=12, temperature=0.0, stop_token_ids=(stop,)))
    assert tokens_of(deltas) == free[: free.index(stop) + 1]
    assert deltas[-1].finish_reason == "stop"
    end = SamplingParams(max_tokens=5, temperature=0.0, logit_bias={3: 100.0})
    assert tokens_of(await everything(engine, end)) == [3] * 5


async def test_scores_and_logprobs_agree_with_transformers(engine: VllmEngine, reference: LlamaForCausalLM) -> None:
    with torch.inference_mode():
        # (seq, vocab)
        logprobs = reference(torch.tensor([PROMPT])).logits[0].log_softmax(-1)
    scored = await engine.score(PROMPT, top_logprobs=2)
    assert [entry.token_id for entry in scored] == list(PROMPT[1:])
    for position, entry in enumerate(scored):
        assert entry.logprob == pytest.approx(logprobs[position, entry.token_id].item(), abs=1e-4)
        assert [token for token, _ in entry.top] == logprobs[position].topk(2).indices.tolist()
    (delta,) = await everything(engine, SamplingParams(max_tokens=1, temperature=0.0, top_logprobs=3))
    assert delta.logprobs is not None
    assert delta.logprobs[0].logprob == pytest.approx(logprobs[-1].max().item(), abs=1e-4)
    assert [token for token, _ in delta.logprobs[0].top] == logprobs[-1].topk(3).indices.tolist()


async def test_a_seed_repeats_and_another_does_not(engine: VllmEngine) -> None:
    one, again, other = [
        tokens_of(await everything(engine, SamplingParams(max_tokens=20, seed=seed))) for seed in (1, 1, 2)
    ]
    assert one == again != other


async def test_a_second_request_finds_the_prompt_cached(engine: VllmEngine) -> None:
    prompt = tuple(range(100, 420))
    cached = []
    for name in "ab":
        request = GenerateRequest(name, prompt, SamplingParams(max_tokens=1))
        cached += [delta.cached_tokens async for delta in engine.generate(request)]
    assert cached[0] == 0
    assert 0 < cached[1] < len(prompt)


async def test_what_the_engine_says_of_itself(engine: VllmEngine) -> None:
    info = engine.info
    assert info.engine.startswith("vllm 0.32")
    assert (info.context_length, info.dtype) == (512, "float32")
    assert info.kv_bytes == KV_GIB * 2**30
    token_bytes = 2 * 2 * 2 * 32 * 4  # layers, keys and values, heads, head size, float32
    assert info.kv_capacity_tokens == pytest.approx(info.kv_bytes / token_bytes, rel=0.03)


async def test_leaving_a_request_frees_it(engine: VllmEngine) -> None:
    request = GenerateRequest("left", PROMPT, SamplingParams(max_tokens=400))
    async with aclosing(engine.generate(request)) as deltas:
        await anext(deltas)
    assert engine._llm.get_num_unfinished_requests() == 0


async def test_abort_by_id_ends_a_request_without_a_reason(engine: VllmEngine) -> None:
    sampling = SamplingParams(max_tokens=400, temperature=0.0)
    deltas = engine.generate(GenerateRequest("aborted", PROMPT, sampling))
    await anext(deltas)
    await engine.abort("aborted")
    rest = [delta async for delta in deltas]
    assert all(delta.finish_reason is None for delta in rest)
    assert len(tokens_of(rest)) < 399


async def test_a_prompt_that_is_too_long_is_refused(engine: VllmEngine) -> None:
    request = GenerateRequest("long", tuple([20] * 600), SamplingParams(max_tokens=1))
    with pytest.raises(RequestRefusedError):
        await anext(engine.generate(request))


SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["서울", "부산"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
    },
    "required": ["city", "count", "name"],
    "additionalProperties": False,
}
JSON = Grammar("json_schema", json.dumps(SCHEMA, ensure_ascii=False))
PHONE = Grammar("regex", r"01[016]-[0-9]{3,4}-[0-9]{4}")
END = 3


async def spelled(engine: VllmEngine, tokenizer: ChatTokenizer, grammar: Grammar, **sampling: object) -> str:
    """The text of an answer that its grammar has ended, without the end token."""
    params = {"max_tokens": 200, "stop_token_ids": (END,), "grammar": grammar} | sampling
    deltas = await everything(engine, SamplingParams(**params))  # type: ignore[arg-type]
    *tokens, end = tokens_of(deltas)
    assert (end, deltas[-1].finish_reason) == (END, "stop")
    assert not set(tokens) & tokenizer.hidden_ids, "control tokens are no text"
    text = tokenizer.backend.decode(tokens, skip_special_tokens=False)
    assert "\ufffd" not in text, "every character is whole"
    return text


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, *({"seed": seed} for seed in range(8))])
async def test_random_weights_keep_to_a_json_schema(
    engine: VllmEngine, tokenizer: ChatTokenizer, sampling: dict
) -> None:
    text = await spelled(engine, tokenizer, JSON, **sampling)
    answer = json.loads(text)
    jsonschema.validate(answer, SCHEMA)
    assert text == json.dumps(answer, ensure_ascii=False, separators=(",", ":")), "no blank space"


async def test_json_may_be_any_object(engine: VllmEngine, tokenizer: ChatTokenizer) -> None:
    closing = dict.fromkeys(tokenizer.backend.encode('"', add_special_tokens=False).ids, 4.0)
    schema = '{"type": "object", "minProperties": 1, "additionalProperties": {"type": ["string", "boolean"]}}'
    texts = [
        await spelled(engine, tokenizer, Grammar("json_schema", schema), seed=seed, logit_bias=closing)
        for seed in range(5)
    ]
    assert all(json.loads(text) for text in texts)
    assert len(set(texts)) > 1


@pytest.mark.parametrize("regex", [PHONE.value, "[가-힣]{2,4}(시|도)", "(?i)yes|no"])
async def test_random_weights_keep_to_a_regular_expression(
    engine: VllmEngine, tokenizer: ChatTokenizer, regex: str
) -> None:
    for seed in range(3):
        assert re.fullmatch(regex, await spelled(engine, tokenizer, Grammar("regex", regex), seed=seed))


async def test_random_weights_keep_to_an_ebnf_grammar(engine: VllmEngine, tokenizer: ChatTokenizer) -> None:
    grammar = Grammar("ebnf", 'root ::= sum " 원"\nsum ::= digit | digit "+" sum\ndigit ::= [1-9]')
    assert re.fullmatch(r"[1-9](\+[1-9])* 원", await spelled(engine, tokenizer, grammar, seed=1))


async def test_a_seed_repeats_under_a_grammar(engine: VllmEngine, tokenizer: ChatTokenizer) -> None:
    one, again, other = [await spelled(engine, tokenizer, JSON, seed=seed) for seed in (1, 1, 2)]
    assert one == again != other


@pytest.mark.parametrize("stop_token_ids", [(), (7,)])
async def test_an_end_token_that_the_request_does_not_know_is_left_out(
    engine: VllmEngine, tokenizer: ChatTokenizer, stop_token_ids: tuple[int, ...]
) -> None:
    sampling = SamplingParams(max_tokens=50, stop_token_ids=stop_token_ids, grammar=PHONE, top_logprobs=1)
    deltas = await everything(engine, sampling)
    assert re.fullmatch(PHONE.value, tokenizer.backend.decode(tokens_of(deltas), skip_special_tokens=False))
    assert deltas[-1].finish_reason == "stop"
    assert [entry.token_id for delta in deltas for entry in delta.logprobs or ()] == tokens_of(deltas)


async def test_max_tokens_cuts_a_grammar_off(engine: VllmEngine, tokenizer: ChatTokenizer) -> None:
    deltas = await everything(engine, SamplingParams(max_tokens=2, stop_token_ids=(END,), grammar=PHONE))
    assert (len(tokens_of(deltas)), deltas[-1].finish_reason) == (2, "length")
    assert tokenizer.backend.decode(tokens_of(deltas)).startswith("01")


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (Grammar("json_schema", "{"), "EOF while parsing"),
        (Grammar("json_schema", "[1]"), "Expecting object schema"),
        (Grammar("json_schema", '{"type": "strin"}'), "Invalid type: strin"),
        (Grammar("json_schema", '{"type": "array", "uniqueItems": true}'), 'Unimplemented keys: ."uniqueItems"'),
        (Grammar("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}'), "minimum .5. is greater"),
        (Grammar("json_schema", "[" * 5000 + "]" * 5000), "nested too deeply"),
        (Grammar("regex", "(a"), "unclosed group"),
        (Grammar("regex", "(?=a)b"), "look-ahead"),
        (Grammar("regex", "a\0"), "NUL"),
        (Grammar("ebnf", "rule ::= "), "No 'root' rule"),
        (Grammar("ebnf", " "), "empty"),
    ],
    ids=lambda value: value.value[:24] if isinstance(value, Grammar) else "",
)
async def test_a_grammar_that_cannot_be_enforced_is_refused_and_the_engine_goes_on(
    engine: VllmEngine, grammar: Grammar, reason: str
) -> None:
    with pytest.raises(RequestRefusedError, match=reason):
        await everything(engine, SamplingParams(max_tokens=5, grammar=grammar))
    assert len(tokens_of(await everything(engine, SamplingParams(max_tokens=5)))) == 5


async def test_a_grammar_that_leaves_no_choice_but_a_control_token_is_refused(engine: VllmEngine) -> None:
    sampling = SamplingParams(max_tokens=20, grammar=Grammar("regex", "<think>[0-9]</think>"))
    with pytest.raises(RequestRefusedError, match="perhaps as it spells a control token"):
        await everything(engine, sampling)
    await engine.health()


async def test_requests_with_and_without_a_grammar_run_side_by_side(
    engine: VllmEngine, tokenizer: ChatTokenizer
) -> None:
    async def text_of(name: str, grammar: Grammar | None) -> str:
        sampling = SamplingParams(max_tokens=40, temperature=0.0, stop_token_ids=(END,), grammar=grammar)
        tokens = tokens_of(await everything(engine, sampling, name))
        return tokenizer.backend.decode([token for token in tokens if token != END], skip_special_tokens=False)

    alone = await text_of("alone", None)
    free, phone, city, again = await asyncio.gather(
        text_of("free", None),
        text_of("phone", PHONE),
        text_of("city", Grammar("json_schema", '{"enum": ["서울", "부산"]}')),
        text_of("again", None),
    )
    assert free == again == alone
    assert re.fullmatch(PHONE.value, phone)
    assert city in ('"서울"', '"부산"')


async def test_stats_tell_how_full_it_is(engine: VllmEngine) -> None:
    idle = EngineStats(kv_cache_usage=0.0, running=0, waiting=0)
    assert await engine.stats() == idle
    sampling = SamplingParams(max_tokens=400)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(everything(engine, sampling, f"s{n}")) for n in range(10)]
        busy = await engine.stats()
        for pause in itertools.repeat(0.01):
            if busy.running + busy.waiting == 10:
                break
            await asyncio.sleep(pause)
            busy = await engine.stats()
        assert (busy.running, busy.waiting) == (8, 2)
        assert busy.kv_cache_usage is not None
        assert 0 < busy.kv_cache_usage < 1
        for task in tasks:
            task.cancel()
    assert await engine.stats() == idle


async def test_the_metrics_of_this_process_are_left_alone(engine: VllmEngine, our_metric: Gauge) -> None:
    await everything(engine, SamplingParams(max_tokens=2))
    names = {metric.name for metric in REGISTRY.collect()}
    assert "vllm:ours" in names
    assert "vllm:num_requests_running" not in names


class _LeftOpen:
    """The engine for an application that must not close it: the tests after it still need it."""

    def __init__(self, engine: VllmEngine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    async def close(self) -> None:
        """Leave it running."""


async def test_the_gateway_streams_what_it_does_not_stream(engine: VllmEngine, llama_dir: Path) -> None:
    model = ServedModel("llama", _LeftOpen(engine), ChatTokenizer.load(str(llama_dir)))  # type: ignore[arg-type]
    app = create_app(Models([model]))
    sock = listen("127.0.0.1", 0)
    up = asyncio.Event()
    server = Server(app, shutdown_timeout=5, on_ready=up.set)
    handlers = asyncio.create_task(server.serve(sockets=[sock]))
    await up.wait()
    client = AsyncOpenAI(base_url=url_of(sock), api_key="none", max_retries=0)
    for sampling in ({"temperature": 0}, {"seed": 7, "n": 2}):
        asked: dict = {
            "model": "llama",
            "messages": [{"role": "user", "content": "안녕"}],
            "max_tokens": 40,
            "extra_body": {"chat_template_kwargs": {"enable_thinking": False}},
            **sampling,
        }
        whole = await client.chat.completions.create(**asked)
        texts = dict.fromkeys(range(len(whole.choices)), "")
        async for chunk in await client.chat.completions.create(**asked, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        assert [choice.message.content for choice in whole.choices] == list(texts.values())
        assert whole.choices[0].message.content
        assert whole.usage is not None
        assert whole.usage.completion_tokens <= 40 * len(texts)
    async with httpx.AsyncClient() as http:
        assert (await http.get(url_of(sock).replace("/v1", "/ready"))).status_code == 200
    server.should_exit = True
    await handlers


async def test_a_model_that_is_not_there_is_our_error(tmp_path: Path) -> None:
    with pytest.raises(EngineStartError, match="did not start"):
        await VllmEngine.start(VllmOptions(str(tmp_path)))


async def test_a_killed_engine_is_our_error_for_what_is_under_way_and_what_comes(engine: VllmEngine) -> None:
    deltas = engine.generate(GenerateRequest("doomed", PROMPT, SamplingParams(max_tokens=400)))
    await anext(deltas)
    for process in engine._llm.engine_core.resources.engine_manager.processes:
        process.kill()
    with pytest.raises(EngineDeadError, match="start the server again"):
        async for _ in deltas:
            pass
    for failing in (engine.health(), engine.stats(), everything(engine, SamplingParams(max_tokens=1))):
        with pytest.raises(EngineDeadError):
            await failing


async def test_a_closed_engine_says_that_it_is_closed(engine: VllmEngine) -> None:
    await engine.close()
    for failing in (
        engine.health(),
        engine.stats(),
        engine.score(PROMPT),
        everything(engine, SamplingParams(max_tokens=1)),
    ):
        with pytest.raises(EngineDeadError):
            await failing
