"""The configuration of a gateway: a YAML file, read strictly.

Settings that the code takes as dataclasses are those dataclasses here too, so that a field has one name.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from trillion_serve.chat.thinking import ThinkingSettings
from trillion_serve.engines.http import HttpOptions
from trillion_serve.engines.vllm import VllmOptions
from trillion_serve.errors import ServeError
from trillion_serve.gateway.documents import read_document
from trillion_serve.gateway.observability import LogFormat, ObservabilityConfig
from trillion_serve.gateway.security.keys import ApiKey
from trillion_serve.gateway.security.limits import RequestLimits
from trillion_serve.routing import PoolConfig

Seconds = Annotated[float, Field(gt=0)]
Name = Annotated[str, Field(pattern=r"^[\w.:@/-]{1,128}$")]


def _http_url(url: str) -> str:
    if not url.startswith(("http://", "https://")) or len(url.split("//")[1].strip("/")) == 0:
        raise ValueError("must be a base URL such as http://10.0.0.5:8000")
    if url.rstrip("/").endswith("/v1"):
        raise ValueError("must be the server's base URL, without /v1")
    return url.rstrip("/")


@dataclass(frozen=True)
class Timeouts:
    """How long to wait for an engine, in seconds: see ``HttpOptions``."""

    connect: Seconds = 5.0
    first_token: Seconds = 300.0
    between_tokens: Seconds = 60.0
    total: Seconds | None = 3600.0


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ReplicaConfig(_Document):
    """A server that runs the model.

    Attributes:
        name: unique within the model.
        kind: what the server is.
        url: its base URL.
        model: the name it serves the model under; None takes the only one.
        api_key_env: the environment variable that holds its API key.
    """

    name: Annotated[str, Field(pattern=r"^[\w.-]{1,64}$")]
    kind: Literal["vllm", "sglang"]
    url: Annotated[str, AfterValidator(_http_url)]
    model: str | None = None
    api_key_env: str | None = None

    def options(self, timeouts: Timeouts, pool: PoolConfig) -> HttpOptions:
        """How to reach it.

        Raises:
            ServeError: the environment has no such key.
        """
        return HttpOptions(
            url=self.url,
            model=self.model,
            api_key=self._api_key(),
            connect_timeout=timeouts.connect,
            first_token_timeout=timeouts.first_token,
            between_tokens_timeout=timeouts.between_tokens,
            total_timeout=timeouts.total,
            health_timeout=pool.health.timeout,
            # Beyond the requests under way, connections for health checks, aborts and figures.
            max_connections=pool.max_concurrency + 8,
        )

    def _api_key(self) -> str | None:
        if self.api_key_env is None:
            return None
        try:
            return os.environ[self.api_key_env]
        except KeyError:
            raise ServeError(
                f"replica {self.name}: api_key_env names {self.api_key_env}, which the environment does not have"
            ) from None


class ModelConfig(_Document):
    """A model, and the servers that run it or the engine that does so in this process.

    Attributes:
        name: what clients call it.
        tokenizer: directory (a relative one counts from the file's) or hub id of tokenizer, template and
            generation config. ``engine`` uses it too, and has the generation config beside its weights.
        engine: vLLM in this process; its ``model`` is a directory (a relative one counts from the file's) or hub id.
        replicas: may be empty, to be added by the admin API.
    """

    name: Name
    tokenizer: str
    engine: VllmOptions | None = None
    replicas: tuple[ReplicaConfig, ...] = ()
    pool: PoolConfig = PoolConfig()
    timeouts: Timeouts = Timeouts()
    thinking: ThinkingSettings = ThinkingSettings()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        _check_unique("replicas", [replica.name for replica in self.replicas])
        return self

    @model_validator(mode="after")
    def _runs_in_one_place(self) -> Self:
        if self.engine is not None and self.replicas:
            raise ValueError("a model has either an engine, in this process, or replicas elsewhere")
        if self.engine is not None and self.engine.tokenizer is not None:
            raise ValueError("the tokenizer stands beside engine, not in it")
        return self

    def beside(self, folder: Path) -> Self:
        """The same with directories in ``folder`` found there."""
        engine = self.engine
        if engine is not None:
            engine = replace(engine, model=_beside(folder, engine.model))
        return self.model_copy(update={"tokenizer": _beside(folder, self.tokenizer), "engine": engine})


class ServerConfig(_Document):
    """Where and how to listen.

    Attributes:
        port: 0 takes a free one.
        drain_delay: seconds after SIGTERM in which requests are still taken while ``/ready`` is 503 already, so that
            whoever sends them can notice.
        shutdown_timeout: seconds that requests under way may take to finish after that.
        insecure: other machines may use the API without a key.
        metrics_public: ``/metrics`` needs no key; None means where only this machine can reach it.
        limits: for every request.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    drain_delay: Annotated[float, Field(ge=0)] = 0.0
    shutdown_timeout: Annotated[int, Field(ge=1)] = 30
    insecure: bool = False
    metrics_public: bool | None = None
    limits: RequestLimits = RequestLimits()


class LogConfig(_Document):
    """What goes to stderr.

    Attributes:
        format: of a line.
        level: least level of the gateway's own lines.
    """

    format: LogFormat = LogFormat.TEXT
    level: Literal["debug", "info", "warning", "error"] = "info"


class GatewayConfig(_Document):
    """Everything. Keys, those of the admin API among them, may stand here, in ``keys_file``, or in both.

    ``log`` and ``observability`` change with a restart only.
    """

    models: tuple[ModelConfig, ...] = ()
    server: ServerConfig = ServerConfig()
    log: LogConfig = LogConfig()
    observability: ObservabilityConfig = ObservabilityConfig()
    keys: tuple[ApiKey, ...] = ()
    keys_file: Path | None = None

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        _check_unique("models", [model.name for model in self.models])
        _check_unique("keys", [key.name for key in self.keys])
        return self

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file.

        Raises:
            ServeError: it cannot be read, or a field is wrong.
        """
        config = read_document(path, cls)
        folder = path.parent
        return config.model_copy(
            update={
                "models": tuple(model.beside(folder) for model in config.models),
                "keys_file": None if config.keys_file is None else folder / config.keys_file,
            }
        )


def _beside(folder: Path, name: str) -> str:
    """A directory in ``folder`` as a path from here; anything else as it is."""
    local = folder / name
    return str(local) if local.is_dir() else name


def _check_unique(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"two of the {what} are called {name!r}")
        seen.add(name)
