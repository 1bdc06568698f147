"""What a gateway serves: models, replicas, keys and limits as its configuration has them, and as it changes."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.engines.http import HttpEngine
from trillion_serve.engines.http_sglang import SglangHttpEngine
from trillion_serve.engines.http_vllm import VllmHttpEngine
from trillion_serve.engines.protocol import Engine
from trillion_serve.errors import EngineStartError, ServeError
from trillion_serve.gateway.config import GatewayConfig, ModelConfig, ReplicaConfig
from trillion_serve.gateway.errors import ApiError
from trillion_serve.gateway.models import Models, ServedModel
from trillion_serve.gateway.sampling import SamplingDefaults
from trillion_serve.gateway.security.front import Front, FrontSettings, check_exposure, is_loopback
from trillion_serve.gateway.security.keys import Keyring
from trillion_serve.gateway.security.keys_file import read_keys
from trillion_serve.routing import Pool, PoolConfig

logger = logging.getLogger(__name__)

_ENGINES: dict[str, type[HttpEngine]] = {"vllm": VllmHttpEngine, "sglang": SglangHttpEngine}
_READY_SECONDS = 30.0


@dataclass
class _Served:
    """A configured model that is served, and its replicas by the names that its pool has for them."""

    config: ModelConfig
    pool: Pool
    replicas: dict[str, ReplicaConfig] = field(default_factory=dict)

    def add(self, replica: ReplicaConfig) -> str:
        """Add a replica under its name, or one like it while a former one of that name finishes."""
        taken = {snapshot.name for snapshot in self.pool.snapshot().replicas}
        name, count = replica.name, 1
        while name in taken:
            count += 1
            name = f"{replica.name}.{count}"
        options = replica.options(self.config.timeouts, self.config.pool)
        self.pool.add(name, lambda: _ENGINES[replica.kind].connect(options))
        self.replicas[name] = replica
        return name


class Deployment:
    """Makes what runs match what is configured.

    Args:
        load: reads the configuration; called again for each reload.
        fixed: models that run in this process, which no configuration changes.

    Attributes:
        config: what was read last.
        models: what is served.
        front: who may come in, and with how much.
    """

    def __init__(self, load: Callable[[], GatewayConfig], fixed: Iterable[ServedModel] = ()) -> None:
        self._load = load
        self.config = GatewayConfig()
        self.models = Models(fixed)
        self.front = Front()
        self._host: str | None = None
        self._fixed = frozenset(model.name for model in self.models)
        self._served: dict[str, _Served] = {}
        self._retired: set[Pool] = set()
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def reload(self) -> list[str]:
        """Read the configuration, and change what has changed; the first time, begin to serve it.

        Requests under way go on where they are. Replicas are connected to as they come up.

        Returns:
            What was done, a line each.

        Raises:
            ServeError: the configuration is wrong; nothing has changed.
        """
        async with self._reloading:
            config = await asyncio.to_thread(self._load)
            # The socket stays where it is, whatever the file says of it by now.
            host = self._host or config.server.host
            settings = await asyncio.to_thread(front_settings, config, host)
            self._check(config)
            fresh = await self._prepare([model for model in config.models if self._is_new(model)])
            # Nothing from here on fails, or waits.
            self._host = host
            self.front.settings = settings
            done = [self._drop(name) for name in set(self._served) - {model.name for model in config.models}]
            done += [self._put(model, served) for model, served in fresh]
            for model in config.models:
                done += self._match_replicas(model)
            self.config = config
            return done

    def reload_in_background(self) -> None:
        """Reload, and log what came of it."""

        async def reload() -> None:
            try:
                done = await self.reload()
            except ServeError as error:
                logger.error("the configuration was read again, and nothing was changed: %s", error)
            else:
                logger.warning("the configuration was read again: %s", "; ".join(done) or "models are as before")

        self._in_background(reload())

    def served(self, model: str) -> _Served:
        """A configured model.

        Raises:
            ApiError: there is none of that name.
        """
        try:
            return self._served[model]
        except KeyError:
            names = ", ".join(map(repr, self._served)) or "none"
            raise ApiError(
                f"no model {model!r} has replicas here, only {names}", status=404, code="model_not_found"
            ) from None

    def add_replica(self, model: str, replica: ReplicaConfig) -> None:
        """Add a replica until the next reload.

        Raises:
            ApiError: there is no such model, it has a replica of that name, or the key is none that the
                configuration uses.
        """
        served = self.served(model)
        if replica.name in served.replicas:
            raise ApiError(f"{model} has a replica {replica.name!r} already", status=409, code="replica_exists")
        known = {each.api_key_env for configured in self.config.models for each in configured.replicas}
        # Else whoever may add replicas could have any secret of the environment sent to them.
        if replica.api_key_env is not None and replica.api_key_env not in known:
            raise ApiError(
                "api_key_env must be a variable that a replica in the configuration uses", param="api_key_env"
            )
        served.add(replica)

    async def drain_replica(self, model: str, name: str) -> None:
        """Send a replica no more requests.

        Raises:
            ApiError: there is no such model or replica.
        """
        served = self._with_replica(model, name)
        self._in_background(served.pool.drain(name))
        await asyncio.sleep(0)  # which lets it begin

    async def remove_replica(self, model: str, name: str) -> None:
        """Drain a replica, then close it.

        Raises:
            ApiError: there is no such model or replica.
        """
        self._remove(self._with_replica(model, name), name)
        await asyncio.sleep(0)

    async def close(self) -> None:
        """Close all engines, those that are still finishing among them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(self.models.close(), *(pool.close() for pool in self._retired))

    def _check(self, config: GatewayConfig) -> None:
        clash = self._fixed & {model.name for model in config.models}
        if clash:
            raise ServeError(f"models: {min(clash)!r} runs in this process already; choose another name")
        for model in config.models:
            for replica in model.replicas:
                replica.options(model.timeouts, model.pool)

    def _is_new(self, model: ModelConfig) -> bool:
        """Whether more than its replicas is new."""
        served = self._served.get(model.name)
        return served is None or _without_replicas(served.config) != _without_replicas(model)

    async def _prepare(self, configs: Iterable[ModelConfig]) -> list[tuple[ServedModel, _Served]]:
        """All models that are new, ready to be served; or none, and nothing is left of them."""
        fresh: list[tuple[ServedModel, _Served]] = []
        try:
            for config in configs:
                fresh.append(await self._built(config))
        except BaseException:
            kept = [served.pool for served in self._served.values()]
            await asyncio.gather(*(served.pool.close() for _, served in fresh if served.pool not in kept))
            raise
        return fresh

    async def _built(self, config: ModelConfig) -> tuple[ServedModel, _Served]:
        """A model ready to be served. If one of its name is served, it takes over its pool, or has one that is ready.

        Raises:
            ServeError: it has no tokenizer that can be loaded, or no engine to take over with.
        """
        tokenizer, sampling = await asyncio.to_thread(load_tokenizer, config.tokenizer)
        before = self._served.get(config.name)
        if before is not None and (before.config.pool, before.config.timeouts) == (config.pool, config.timeouts):
            served = _Served(config, before.pool, before.replicas)
        else:
            served = _Served(config, Pool(config.pool))
            for replica in config.replicas:
                served.add(replica)
            if before is not None and config.replicas:
                await self._take_over(served)
        return ServedModel(config.name, served.pool, tokenizer, sampling, config.thinking), served

    async def _take_over(self, served: _Served) -> None:
        try:
            await served.pool.ready(_READY_SECONDS)
        except ServeError:
            await served.pool.close()
            raise

    def _put(self, model: ServedModel, served: _Served) -> str:
        before = self._served.get(model.name)
        self._served[model.name] = served
        self.models.put(model)
        if before is not None and before.pool is not served.pool:
            self._in_background(self._retire(before.pool, before.config.pool.drain_timeout))
        return f"model {model.name} {'added' if before is None else 'changed'}"

    def _drop(self, name: str) -> str:
        served = self._served.pop(name)
        self.models.remove(name)
        self._in_background(self._retire(served.pool, served.config.pool.drain_timeout))
        return f"model {name} removed"

    def _match_replicas(self, config: ModelConfig) -> list[str]:
        served = self._served[config.name]
        served.config = config
        gone = [name for name, replica in served.replicas.items() if replica not in config.replicas]
        new = [replica for replica in config.replicas if replica not in served.replicas.values()]
        successors = [served.add(replica) for replica in new]
        for name in gone:
            self._remove(served, name, successors)
        return [
            *(f"model {config.name}: replica {replica.name} added" for replica in new),
            *(f"model {config.name}: replica {name} removed once it has finished" for name in gone),
        ]

    def _remove(self, served: _Served, name: str, successors: Sequence[str] = ()) -> None:
        async def remove() -> None:
            if successors:
                with suppress(EngineStartError):
                    await served.pool.ready(_READY_SECONDS, successors)
            await served.pool.remove(name, served.config.pool.drain_timeout)

        del served.replicas[name]
        self._in_background(remove())

    async def _retire(self, pool: Pool, seconds: float) -> None:
        """Close a pool that nobody is given any more. An answer may come back to it until its request is over."""
        self._retired.add(pool)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.front.all_ended()
        await pool.close()
        self._retired.discard(pool)

    def _with_replica(self, model: str, name: str) -> _Served:
        served = self.served(model)
        if name not in served.replicas:
            names = ", ".join(map(repr, served.replicas)) or "none"
            raise ApiError(f"{model} has no replica {name!r}, only {names}", status=404, code="replica_not_found")
        return served

    def _in_background(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("work in the background failed", exc_info=task.exception())


def load_tokenizer(source: str) -> tuple[ChatTokenizer, SamplingDefaults]:
    """The tokenizer of a directory or hub id, and the sampling of its generation config.

    Raises:
        ServeError: there is no tokenizer.
    """
    try:
        sampling = SamplingDefaults.load(source)
    except OSError as error:
        raise ServeError(f"{source} has no tokenizer that can be loaded: {error}") from error
    return ChatTokenizer.load(source, sampling.end_ids), sampling


async def pooled(engine: Engine, config: PoolConfig) -> Pool:
    """A pool of one engine that runs already: it bounds what is under way, and lets the rest wait in turn."""

    async def connect() -> Engine:
        return engine

    pool = Pool(config)
    pool.add("engine", connect)
    await pool.ready(_READY_SECONDS)
    return pool


def front_settings(config: GatewayConfig, host: str) -> FrontSettings:
    """Keys and limits of a configuration.

    Args:
        config: what was read.
        host: the address that is listened on.

    Raises:
        ServeError: the keys file is wrong, or there are no keys where there have to be.
    """
    keys = [*config.keys, *(read_keys(config.keys_file) if config.keys_file is not None else ())]
    names = [key.name for key in keys]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ServeError(f"keys: two keys are called {twice!r}, in the configuration and in {config.keys_file}")
    users = Keyring(key for key in keys if not key.admin)
    server = config.server
    check_exposure(host, users, insecure=server.insecure)
    public = is_loopback(host) if server.metrics_public is None else server.metrics_public
    return FrontSettings(users, Keyring(key for key in keys if key.admin), public, server.limits)


def _without_replicas(config: ModelConfig) -> ModelConfig:
    return config.model_copy(update={"replicas": ()})
