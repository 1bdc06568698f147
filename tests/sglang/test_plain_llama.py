"""Trillion-7B-preview's kind, plain Llama, in SGLang: with our plugin and without it the answers are Transformers'.

Without the plugin SGLang ends at a grammar that leaves no choice but a control token's text: our adapter sends none.
"""

import shutil
from contextlib import aclosing
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from support.sglang_parity import NEW_TOKENS, assert_agrees, random_prompts
from support.sglang_server import SglangServer
from trillion_serve.engines.http import HttpOptions
from trillion_serve.engines.http_sglang import SglangHttpEngine
from trillion_serve.engines.protocol import GenerateRequest, Grammar, SamplingParams
from trillion_serve.errors import RequestRefusedError

pytestmark = pytest.mark.engine

SPELLINGS = [
    Grammar("regex", "(a|b)<tool_call>"),
    Grammar("regex", r"<\|role_start\|>"),
    Grammar("json_schema", '{"const": "\\u003ctool_call>"}'),
    Grammar("ebnf", 'root ::= "<think>"'),
]


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=2,
        eos_token_id=3,
        dtype="float32",
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module", params=["with our plugin", "without"])
def server(request, llama, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory):
    """SGLang that serves it, which loads only the plugins that it is told to."""
    directory = tmp_path_factory.mktemp("llama")
    shutil.copytree(tokenizer_dir, directory / "model")
    llama.save_pretrained(directory / "model")
    running = SglangServer(directory / "model", directory / "log", ours=request.param == "with our plugin")
    running.start()
    yield running
    running.kill()


def test_answers_are_those_of_transformers(server, llama):
    def reference(ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return llama(ids[None]).logits[0]

    prompts = random_prompts([2, 30, 90])
    assert_agrees(reference, prompts, server.generate(prompts, NEW_TOKENS))


async def test_no_grammar_ends_the_server_that_spells_a_control_token(server):
    async def answer(grammar: Grammar) -> int:
        asked = GenerateRequest("r", tuple(range(20, 40)), SamplingParams(max_tokens=60, grammar=grammar))
        async with aclosing(engine.generate(asked)) as deltas:
            return sum([len(delta.token_ids) async for delta in deltas])

    engine = await SglangHttpEngine.connect(HttpOptions(url=server.url))
    try:
        for grammar in SPELLINGS:
            if server.ours:
                assert await answer(grammar)
            else:
                with pytest.raises(RequestRefusedError, match=rf"{grammar.kind}\) spells a control token"):
                    await answer(grammar)
        assert await answer(Grammar("regex", "(가|나)<b>")) > 1
    finally:
        await engine.close()
