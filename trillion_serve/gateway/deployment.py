"""What a gateway serves: models, replicas, keys and limits as its configuration has them, and as it changes."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.engines.http import HttpEngine
from trillion_serve.engines.http_sglang import SglangHttpEngine
from trillion_serve.engines.http_vllm import VllmHttpEngine
from trillion_serve.engines.protocol import Engine
from trillion_serve.engines.vllm import VllmEngine
from trillion_serve.errors import EngineStartError, ServeError
from trillion_serve.gateway.config import GatewayConfig, ModelConfig, ReplicaConfig
from trillion_serve.gateway.errors import ApiError
from trillion_serve.gateway.models import Models, ServedModel
from trillion_serve.gateway.sampling import SamplingDefaults
from trillion_serve.gateway.security.changes import changes, check_still_closed
from trillion_serve.gateway.security.front import Front, FrontSettings, check_exposure, is_loopback
from trillion_serve.gateway.security.keys import Keyring
from trillion_serve.gateway.security.keys_file import read_keys
from trillion_serve.routing import Pool

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


async def start_vllm(config: ModelConfig) -> Engine:
    """The engine of a model that runs in this process; blocks the event loop meanwhile.

    Raises:
        EngineStartError: it did not start.
    """
    assert config.engine is not None, "only a model with an engine runs in this process"
    return await VllmEngine.start(replace(config.engine, tokenizer=config.tokenizer))


class Deployment:
    """Makes what runs match what is configured.

    Args:
        load: reads the configuration; called again for each reload.
        start: starts the engine of a model that runs in this process; called before anything is served.

    Attributes:
        config: what was read last.
        models: what is served.
        front: who may come in, and with how much.
    """

    def __init__(
        self, load: Callable[[], GatewayConfig], start: Callable[[ModelConfig], Awaitable[Engine]] = start_vllm
    ) -> None:
        self._load = load
        self._start = start
        self.config = GatewayConfig()
        self.models = Models()
        self.front = Front()
        self._host: str | None = None
        self._served: dict[str, _Served] = {}
        self._retired: set[Pool] = set()
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def reload(self) -> list[str]:
        """Read the configuration, and change what has changed; the first time, begin to serve it.

        Requests under way go on where they are. Replicas are connected to as they come up.

        Returns:
            What was done, a line each; it is logged too.

        Raises:
            ServeError: the configuration is wrong; nothing has changed.
        """
        async with self._reloading:
            if self._host is None:
                return await self._apply()
            try:
                done = await self._apply()
            except ServeError as error:
                logger.error("the configuration was read again, and nothing was changed: %s", error)
                raise
            logger.warning("the configuration was read again: %s", "; ".join(done) or "all is as before")
            return done

    def reload_in_background(self) -> None:
        """Reload; the log tells what came of it."""

        async def reload() -> None:
            with suppress(ServeError):
                await self.reload()

        self._in_background(reload())

    def served(self, model: str) -> _Served:
        """A configured model that has replicas.

        Raises:
            ApiError: there is none of that name.
        """
        elsewhere = {name: served for name, served in self._served.items() if served.config.engine is None}
        try:
            return elsewhere[model]
        except KeyError:
            names = ", ".join(map(repr, elsewhere)) or "none"
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

    async def _apply(self) -> list[str]:
        config = await asyncio.to_thread(self._load)
        # The socket stays where it is, whatever the file says of it by now.
        host = self._host or config.server.host
        settings = await asyncio.to_thread(front_settings, config, host)
        self._check(config)
        if self._host is not None:
            check_still_closed(self.front.settings, settings, insecure=config.server.insecure)
        fresh = await self._prepare([model for model in config.models if self._is_new(model)])
        # Nothing from here on fails, or waits.
        done = changes(self.front.settings, settings)
        self._host = host
        self.front.settings = settings
        done += [self._drop(name) for name in set(self._served) - {model.name for model in config.models}]
        done += [self._put(model, served) for model, served in fresh]
        for model in config.models:
            done += self._match_replicas(model)
        self.config = config
        return done

    def _check(self, config: GatewayConfig) -> None:
        if self._host is not None and _in_this_process(config) != _in_this_process(self.config):
            raise ServeError("models: an engine in this process, its pool and timeouts change with a restart only")
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
        weights = None if config.engine is None else config.engine.model
        tokenizer, sampling = await asyncio.to_thread(load_tokenizer, config.tokenizer, weights)
        before = self._served.get(config.name)
        if before is not None and (before.config.pool, before.config.timeouts) == (config.pool, config.timeouts):
            served = _Served(config, before.pool, before.replicas)
        else:
            served = _Served(config, await self._pool(config))
            for replica in config.replicas:
                served.add(replica)
            if before is not None and config.replicas:
                await self._take_over(served)
        return ServedModel(config.name, served.pool, tokenizer, sampling, config.thinking), served

    async def _pool(self, config: ModelConfig) -> Pool:
        """A pool without replicas, or with the engine of this process, once it runs."""
        if config.engine is None:
            return Pool(config.pool)
        engine = await self._start(config)

        async def connect() -> Engine:
            return engine

        pool = Pool(config.pool)
        pool.add("engine", connect)
        await pool.ready(_READY_SECONDS)
        return pool

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


def load_tokenizer(source: str, weights: str | None = None) -> tuple[ChatTokenizer, SamplingDefaults]:
    """The tokenizer of a directory or hub id, and the sampling of the generation config.

    Args:
        source: has the tokenizer.
        weights: directory or hub id that has the generation config, if ``source`` does not.

    Raises:
        ServeError: there is no tokenizer.
    """
    try:
        sampling = SamplingDefaults.load(weights or source)
    except OSError as error:
        raise ServeError(f"{source} has no tokenizer that can be loaded: {error}") from error
    return ChatTokenizer.load(source, sampling.end_ids), sampling


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


def _in_this_process(config: GatewayConfig) -> dict[str, tuple[object, ...]]:
    """The models whose engines run in this process, and what cannot change while they do."""
    return {
        model.name: (model.engine, model.pool, model.timeouts) for model in config.models if model.engine is not None
    }


def _without_replicas(config: ModelConfig) -> ModelConfig:
    return config.model_copy(update={"replicas": ()})
