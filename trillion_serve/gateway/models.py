"""The models behind the gateway, by the names that clients call them."""

import asyncio
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field, replace

from trillion_serve.chat.thinking import ThinkingSettings
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.engines.protocol import Engine
from trillion_serve.gateway.errors import ApiError
from trillion_serve.gateway.limits.call import current_call
from trillion_serve.gateway.limits.metered import MeteredEngine
from trillion_serve.gateway.sampling import SamplingDefaults
from trillion_serve.routing import Pool


@dataclass(frozen=True)
class ServedModel:
    """A model, and what it takes to answer with it.

    Attributes:
        name: what clients call it.
        engine: what runs it: one engine, or a pool of them.
        tokenizer: the model's.
        sampling: for requests that say nothing.
        thinking: for requests that leave it open.
        created: seconds since the epoch at which it came to be served.
    """

    name: str
    engine: Engine
    tokenizer: ChatTokenizer
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)
    thinking: ThinkingSettings = field(default_factory=ThinkingSettings)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def pool(self) -> Pool | None:
        """The pool of engines that runs it, if it is one."""
        inner = self.engine.inner if isinstance(self.engine, MeteredEngine) else self.engine
        return inner if isinstance(inner, Pool) else None

    def turns(self) -> AbstractAsyncContextManager[object]:
        """What the parts of one request share, each held inside it: no more of them are under way than have a place,
        and the others wait for these, where the pool's queue would refuse what never fits in it.
        """
        return nullcontext() if self.pool is None else asyncio.Semaphore(max(self.pool.places, 1))


class Models:
    """All models of a gateway, in the order in which they were added. Their engines count what callers use."""

    def __init__(self, models: Iterable[ServedModel] = ()) -> None:
        self._models: dict[str, ServedModel] = {}
        for model in models:
            self.put(model)

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(tuple(self._models.values()))

    def visible(self) -> list[ServedModel]:
        """Those that the current caller may use."""
        call = current_call()
        key = call.key if call is not None else None
        return [model for model in self if key is None or key.allows(model.name)]

    def get(self, name: str) -> ServedModel:
        """A model that the current caller may use, by its name.

        Raises:
            ApiError: there is none of that name.
        """
        visible = {model.name: model for model in self.visible()}
        try:
            return visible[name]
        except KeyError:
            names = ", ".join(map(repr, visible)) or "none"
            raise ApiError(
                f"there is no model {name!r} here, only {names}", status=404, code="model_not_found", param="model"
            ) from None

    def put(self, model: ServedModel) -> None:
        """Serve a model; one that had its name is served no more, but goes on with what it is doing."""
        if not isinstance(model.engine, MeteredEngine):
            model = replace(model, engine=MeteredEngine(model.engine))
        self._models[model.name] = model

    def remove(self, name: str) -> ServedModel:
        """Serve a model no more. It goes on with what it is doing, and is the caller's to close."""
        return self._models.pop(name)

    async def close(self) -> None:
        """Close the engines of all models."""
        await asyncio.gather(*(model.engine.close() for model in self))
