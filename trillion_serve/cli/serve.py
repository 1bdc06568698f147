"""``trillion-serve serve``: one model behind the OpenAI API."""

import asyncio
import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trillion_serve.cli.models import display_name, resolve
from trillion_serve.errors import ServeError

if TYPE_CHECKING:
    from trillion_serve.chat.tokenizer import ChatTokenizer
    from trillion_serve.engines.protocol import Engine, GenerateRequest


class EngineName(StrEnum):
    """The engines that can be named."""

    VLLM = "vllm"
    FAKE = "fake"


def serve(
    model: Annotated[str, typer.Argument(help="Model directory, hub id, or preset name.")],
    engine: Annotated[EngineName, typer.Option(help="`fake` is for load tests: it runs no model.")] = EngineName.VLLM,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8000,
    served_model_name: Annotated[str | None, typer.Option(help="What clients call the model.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Tokenizer directory or hub id, if not MODEL's.")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Most tokens in a sequence.", min=2)] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    kv_cache_memory: Annotated[
        float | None, typer.Option(help="GiB of KV cache a device; on a CPU 1 unless given.", min=0.001)
    ] = None,
    tensor_parallel_size: Annotated[int, typer.Option(min=1)] = 1,
    pipeline_parallel_size: Annotated[int, typer.Option(min=1)] = 1,
    max_num_batched_tokens: Annotated[
        int, typer.Option(help="Tokens in a step; windowed layers reserve KV cache for as many.", min=1)
    ] = 2048,
    max_num_seqs: Annotated[int | None, typer.Option(help="Most sequences in a step.", min=1)] = None,
    load_format: Annotated[str, typer.Option(help="`dummy` serves random weights.")] = "auto",
    engine_arg: Annotated[
        list[str] | None, typer.Option(help="Any other vLLM engine argument, as name=JSON. Repeatable.")
    ] = None,
    shutdown_timeout: Annotated[
        int, typer.Option(help="Seconds that requests may take to finish after SIGTERM.", min=1)
    ] = 30,
) -> None:
    """Serve a model behind the OpenAI API.

    Example: `trillion-serve serve ~/.cache/trillion_serve/demo/hf --port 8000 --kv-cache-memory 0.5`
    """
    from trillion_serve.chat.tokenizer import ChatTokenizer
    from trillion_serve.engines.vllm import VllmOptions
    from trillion_serve.gateway.settings import GatewaySettings, SamplingDefaults

    path = resolve(model, dummy_weights=load_format == "dummy")
    defaults = SamplingDefaults.load(path)
    chat_tokenizer = ChatTokenizer.load(tokenizer or path, defaults.end_ids)
    options = VllmOptions(
        model=path,
        tokenizer=tokenizer,
        max_model_len=max_model_len,
        dtype=dtype,
        kv_cache_memory=kv_cache_memory,
        tensor_parallel_size=tensor_parallel_size,
        pipeline_parallel_size=pipeline_parallel_size,
        max_num_batched_tokens=max_num_batched_tokens,
        max_num_seqs=max_num_seqs,
        load_format=load_format,
        extra=dict(map(parse_engine_arg, engine_arg or [])),
    )
    settings = GatewaySettings(model_name=served_model_name or display_name(model), sampling=defaults)

    async def start() -> "Engine":
        if engine is EngineName.FAKE:
            return fake_engine(chat_tokenizer, max_model_len or 4096)
        from trillion_serve.engines.vllm import VllmEngine

        return await VllmEngine.start(options)

    asyncio.run(_run(start, chat_tokenizer, settings, host, port, shutdown_timeout))


async def _run(
    start: Any, tokenizer: "ChatTokenizer", settings: Any, host: str, port: int, shutdown_timeout: int
) -> None:
    from trillion_serve.gateway.app import create_app
    from trillion_serve.gateway.server import Server, listen, url_of

    sock = listen(host, port)
    engine: Engine = await start()
    info = engine.info
    size = f" in {info.kv_bytes / 2**30:.2f} GiB" if info.kv_bytes else ""
    typer.echo(
        f"{info.engine}, {info.dtype}: context {info.context_length:,} tokens, "
        f"KV cache {info.kv_capacity_tokens:,} tokens{size}"
    )

    def announce() -> None:
        typer.echo(f"Serving {settings.model_name} at {url_of(sock)}")

    app = create_app(engine, tokenizer, settings)
    await Server(app, shutdown_timeout=shutdown_timeout, on_ready=announce).serve(sockets=[sock])


def parse_engine_arg(text: str) -> tuple[str, Any]:
    """``name=value`` with the value as JSON, or as a plain string where it is none.

    Raises:
        ServeError: there is no ``=``.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ServeError(f"--engine-arg takes name=value, such as block_size=32, not {text!r}")
    try:
        return name.replace("-", "_"), json.loads(value)
    except json.JSONDecodeError:
        return name.replace("-", "_"), value


def fake_engine(tokenizer: "ChatTokenizer", context_length: int) -> "Engine":
    """The engine without a model: it thinks where the prompt opened a think block, and tells the prompt's length."""
    from trillion_model.vaetki.chat_format import THINK_END
    from trillion_serve.engines.fake import FakeEngine

    def reply(request: "GenerateRequest") -> list[int]:
        tail = tokenizer.backend.decode(list(request.prompt_token_ids[-4:]), skip_special_tokens=False)
        answer = f"The prompt has {len(request.prompt_token_ids)} tokens. 가짜 답입니다."
        thought = "" if tail.rstrip().endswith(THINK_END) else f"I only count.\n{THINK_END}\n\n"
        return [*tokenizer.encode(thought + answer), *tokenizer.end_ids[:1]]

    return FakeEngine(reply, context_length=context_length)
