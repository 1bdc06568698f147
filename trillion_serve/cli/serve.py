"""``trillion-serve serve``: models behind the OpenAI API, in this process or on servers elsewhere."""

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trillion_serve.cli.models import display_name, resolve
from trillion_serve.errors import EngineStartError, ServeError

if TYPE_CHECKING:
    from trillion_serve.chat.tokenizer import ChatTokenizer
    from trillion_serve.engines.protocol import Engine, GenerateRequest
    from trillion_serve.gateway.config import GatewayConfig, ModelConfig, ReplicaConfig
    from trillion_serve.gateway.models import ServedModel

_CONNECT_SECONDS = 10.0


class EngineName(StrEnum):
    """The engines that can be named."""

    VLLM = "vllm"
    HTTP = "http"
    FAKE = "fake"


class LogFormatName(StrEnum):
    """How log lines look."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """The least level of what is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Policy(StrEnum):
    """How requests are spread over replicas."""

    PREFIX = "prefix"
    LEAST_LOAD = "least_load"


def serve(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(help="Model directory, hub id, or preset name.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="A gateway's YAML file, instead of MODEL and all other options.")
    ] = None,
    engine: Annotated[
        EngineName,
        typer.Option(help="`http` sends to the servers at --url; `fake` is for load tests: it runs no model."),
    ] = EngineName.VLLM,
    url: Annotated[
        list[str] | None, typer.Option(help="A server for --engine http, as vllm=URL or sglang=URL. Repeatable.")
    ] = None,
    policy: Annotated[Policy, typer.Option(help="How requests are spread over servers.")] = Policy.PREFIX,
    max_concurrency: Annotated[int, typer.Option(help="Requests under way in an engine; more wait.", min=1)] = 256,
    queue_size: Annotated[int, typer.Option(help="Requests that may wait; more are refused (429).", min=0)] = 1024,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8000,
    keys_file: Annotated[
        Path | None, typer.Option(help="File of API keys, from `trillion-serve keys new`.", dir_okay=False)
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Let other machines use the API without a key.")] = False,
    log_format: Annotated[LogFormatName, typer.Option(help="How log lines look.")] = LogFormatName.TEXT,
    log_level: Annotated[LogLevel, typer.Option(help="Least level of what is logged.")] = LogLevel.INFO,
    log_bodies: Annotated[
        bool, typer.Option("--log-bodies", help="Log the bodies of requests and responses: what people write.")
    ] = False,
    tracing: Annotated[
        bool, typer.Option("--tracing", help="Send OpenTelemetry traces as the OTEL_... variables say.")
    ] = False,
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
    drain_delay: Annotated[
        float, typer.Option(help="Seconds after SIGTERM in which requests are still taken while /ready is 503.", min=0)
    ] = 0.0,
) -> None:
    """Serve models behind the OpenAI API.

    Examples:

    `trillion-serve serve ~/.cache/trillion_serve/demo/hf --port 8000 --kv-cache-memory 0.5`

    `trillion-serve serve MODEL --engine http --url vllm=http://10.0.0.5:8000 --url sglang=http://10.0.0.6:30000`

    `trillion-serve serve --config gateway.yaml`
    """
    # Whatever a reload would read is yet to be read; without a handler the signal would end the process.
    signal.signal(signal.SIGHUP, lambda *_: None)
    if (model is None) == (config is None):
        raise ServeError("name either a MODEL or a --config file")
    if bool(url) != (engine is EngineName.HTTP):
        raise ServeError("--engine http and --url, which says where the engine is, go together")
    if config is not None:
        others = sorted(name for name in context.params if name != "config" and _is_given(context, name))
        if others:
            raise ServeError(f"--config says everything: put {', '.join(others)} into {config}")
        _serve_file(config)
        return
    assert model is not None
    from trillion_serve.gateway.config import GatewayConfig, LogConfig, ModelConfig, ServerConfig
    from trillion_serve.gateway.observability import LogFormat, ObservabilityConfig
    from trillion_serve.routing import HealthConfig, PoolConfig, RetryConfig

    name = served_model_name or display_name(model)
    pool = PoolConfig(policy=policy.value, max_concurrency=max_concurrency, queue_size=queue_size)
    server = ServerConfig(
        host=host, port=port, drain_delay=drain_delay, shutdown_timeout=shutdown_timeout, insecure=insecure
    )
    gateway = GatewayConfig(
        server=server,
        log=LogConfig(format=LogFormat(log_format.value), level=log_level.value),
        observability=ObservabilityConfig(log_bodies=log_bodies, tracing=tracing),
        keys_file=keys_file,
    )
    if engine is EngineName.HTTP:
        replicas = tuple(parse_url(text, number) for number, text in enumerate(url or (), 1))
        # A tokenizer will do here: weights and their configuration are the servers' business.
        source = tokenizer or (model if Path(model).is_dir() else resolve(model))
        served = ModelConfig(name=name, tokenizer=source, replicas=replicas, pool=pool)
        gateway = gateway.model_copy(update={"models": (served,)})
        _run(_serve(lambda: gateway))
        return
    from trillion_serve.engines.vllm import VllmOptions

    options = VllmOptions(
        model=resolve(model, dummy_weights=load_format == "dummy"),
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
    # One engine, next door: asking it how it is costs nothing, and there is no other to try.
    pool = replace(pool, policy="least_load", retry=RetryConfig(attempts=1), health=HealthConfig(1.0, failures=1))
    served = ModelConfig(name=name, tokenizer=tokenizer or options.model, engine=options, pool=pool)
    gateway = gateway.model_copy(update={"models": (served,)})
    _run(_serve(lambda: gateway, _start_fake if engine is EngineName.FAKE else None))


def _is_given(context: typer.Context, option: str) -> bool:
    source = context.get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"


def _serve_file(path: Path) -> None:
    from trillion_serve.gateway.config import GatewayConfig

    _run(_serve(lambda: GatewayConfig.read(path)))


def _run(serving: Coroutine[None, None, None]) -> None:
    """Serve on uvloop, as uvicorn does where it starts the loop itself."""
    import uvloop

    uvloop.run(serving)


async def _serve(
    load: Callable[[], "GatewayConfig"], start: Callable[["ModelConfig"], Awaitable["Engine"]] | None = None
) -> None:
    """Serve until a signal ends it.

    Args:
        load: reads the configuration.
        start: starts the engine of a model in this process; None starts vLLM.
    """
    from trillion_serve.gateway.app import create_deployment_app
    from trillion_serve.gateway.deployment import Deployment, front_settings, start_vllm
    from trillion_serve.gateway.observability import configure_logging
    from trillion_serve.gateway.server import Server, listen, url_of

    config = load()
    configure_logging(config.log.format, config.log.level)
    front_settings(config, config.server.host)  # before anything that takes time is started
    sock = listen(config.server.host, config.server.port)
    deployment = Deployment(load, start or start_vllm)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, deployment.reload_in_background)
    await deployment.reload()
    for model in deployment.models:
        await _introduce(model)

    def announce() -> None:
        names = ", ".join(model.name for model in deployment.models) or "no model yet"
        typer.echo(f"Serving {names} at {url_of(sock)}")

    server = Server(
        create_deployment_app(deployment),
        shutdown_timeout=config.server.shutdown_timeout,
        drain_delay=config.server.drain_delay,
        on_ready=announce,
    )
    await server.serve(sockets=[sock])


async def _start_fake(config: "ModelConfig") -> "Engine":
    """The engine without a model, in place of vLLM."""
    from trillion_serve.gateway.deployment import load_tokenizer

    assert config.engine is not None
    tokenizer, _ = load_tokenizer(config.tokenizer, config.engine.model)
    return fake_engine(tokenizer, config.engine.max_model_len or 4096)


async def _introduce(model: "ServedModel") -> None:
    """Say what runs a model, or that nothing does yet."""
    if model.pool is not None:
        try:
            await model.pool.ready(_CONNECT_SECONDS)
        except EngineStartError as error:
            typer.echo(f"{model.name}: {error}; requests are refused until one is", err=True)
            return
    info = model.engine.info
    size = f" in {info.kv_bytes / 2**30:.2f} GiB" if info.kv_bytes else ""
    typer.echo(
        f"{info.engine}, {info.dtype}: context {info.context_length:,} tokens, "
        f"KV cache {info.kv_capacity_tokens:,} tokens{size}"
    )


def parse_url(text: str, number: int) -> "ReplicaConfig":
    """A replica from ``vllm=URL`` or ``sglang=URL``; its name is its kind and number.

    Raises:
        ServeError: it is neither.
    """
    from pydantic import ValidationError

    from trillion_serve.gateway.config import ReplicaConfig

    kind, _, url = text.partition("=")
    try:
        return ReplicaConfig(name=f"{kind}-{number}", kind=kind, url=url)  # type: ignore[arg-type]
    except ValidationError as error:
        expected = "takes vllm=URL or sglang=URL, such as vllm=http://127.0.0.1:8001"
        raise ServeError(f"--url {expected}, not {text!r}: {error.errors()[-1]['msg']}") from None


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
