"""The plan: weights, what memory they leave, and how many requests fit into it, in three forms of the cache."""

from bisect import bisect_right
from dataclasses import asdict, dataclass, replace
from typing import Any

from trillion_model.sizes import BYTES, KvCache, expanded_kv_cache, has_latents, kv_cache
from trillion_serve.errors import PlanError
from trillion_serve.plan.capacity import (
    BLOCK_SIZES,
    MOST_BATCHED_TOKENS,
    Capacity,
    capacity,
    recommended_batched_tokens,
)
from trillion_serve.plan.memory import GIB, Devices, in_gib
from trillion_serve.plan.models import Model
from trillion_serve.plan.weights import PartWeights, weigh

OURS = "ours"
NO_WINDOWS = "without windows"
EXPANDED = "expanded"
AUTO = "auto"

_EIGHT_BITS = "fp8"
_DIVIDED = ("num_attention_heads", "intermediate_size", "moe_intermediate_size")


@dataclass(frozen=True)
class Settings:
    """How the engine is to run.

    Attributes:
        context: tokens of the longest request.
        ranks: tensor-parallel devices of one replica.
        dtype: of weights and activations; ``auto`` is what the model's configuration says.
        kv_dtype: of the cache: ``fp8``, or ``dtype``, which ``auto`` means.
        batched_tokens: tokens of a step; None for as many as leave windows what they save.
        block_size: tokens of a block of the cache.
        async_scheduling: whether a step is scheduled while another runs, which vLLM does on a GPU. Both then hold
            their tokens.
        utilization: share of a device's memory that the engine may use.
        reserve: bytes of that for activations and graphs, of a device; vLLM measures them when it starts.
    """

    context: int
    ranks: int = 1
    dtype: str = AUTO
    kv_dtype: str = AUTO
    batched_tokens: int | None = None
    block_size: int = 64
    async_scheduling: bool = True
    utilization: float = 0.92
    reserve: int = 2 * GIB


@dataclass(frozen=True)
class CachePlan:
    """One form of the cache, on a device.

    Attributes:
        name: OURS, NO_WINDOWS or EXPANDED.
        token_bytes: of a token that all layers keep.
        global_token_bytes: of a token that windows have passed.
        request_bytes: of a request as long as the context.
        capacity: what fits.
    """

    name: str
    token_bytes: int
    global_token_bytes: int
    request_bytes: int
    capacity: Capacity


@dataclass(frozen=True)
class Plan:
    """A model on devices; all bytes are of one device.

    Attributes:
        model: as it was asked for.
        model_type: its family.
        preset: whether it is a preset, which no engine can load.
        quantization: of its weights; None for none.
        devices: what there is.
        replicas: engines that these devices make.
        settings: how each runs, with nothing left automatic.
        weights: by part.
        cache: what a layer caches.
        latents: whether that is latents.
        kv_memory: bytes left for the cache.
        caches: its three forms, OURS first.
    """

    model: str
    model_type: str
    preset: bool
    quantization: str | None
    devices: Devices
    replicas: int
    settings: Settings
    weights: tuple[PartWeights, ...]
    cache: KvCache
    latents: bool
    kv_memory: int
    caches: tuple[CachePlan, ...]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights on a device."""
        return sum(part.device for part in self.weights)

    @property
    def ours(self) -> CachePlan:
        """The cache as we serve it."""
        return self.caches[0]

    def to_dict(self) -> dict[str, Any]:
        """The figures."""
        return asdict(self) | {"weight_bytes": self.weight_bytes}


def make_plan(model: Model, devices: Devices, settings: Settings) -> Plan:
    """Plan ``model`` on ``devices``.

    Raises:
        PlanError: it does not fit, or the settings do not suit it.
    """
    settings = _settle(model, devices, settings)
    weights = weigh(model, settings.dtype, settings.ranks)
    held = sum(part.device for part in weights)
    usable = int(devices.memory * settings.utilization)
    left = usable - settings.reserve - held
    if left <= 0:
        raise PlanError(
            f"{model.name} does not fit: its weights take {in_gib(held)} GiB of each device, and of "
            f"{in_gib(usable)} GiB that may be used {in_gib(settings.reserve)} GiB are reserved; plan for more or "
            "larger devices, or a quantised checkpoint"
        )
    ranks = settings.ranks
    cache = kv_cache(model.config, ranks)
    forms = {OURS: cache, NO_WINDOWS: cache.without_windows(), EXPANDED: expanded_kv_cache(model.config, ranks)}
    caches = tuple(_plan_cache(name, form, left, settings) for name, form in forms.items())
    if not caches[0].capacity.requests:
        raise PlanError(
            f"a request of {settings.context:,} tokens does not fit: it takes "
            f"{in_gib(caches[0].capacity.reserved_per_request)} GiB of KV cache, and the weights leave "
            f"{in_gib(left)} GiB; the longest context that fits is {longest_context(cache, left, settings):,}"
        )
    return Plan(
        model=model.name,
        model_type=model.config.model_type,
        preset=model.preset,
        quantization=model.quantization,
        devices=devices,
        replicas=devices.count // ranks,
        settings=settings,
        weights=weights,
        cache=cache,
        latents=has_latents(model.config),
        kv_memory=left,
        caches=caches,
    )


def longest_context(cache: KvCache, memory: int, settings: Settings) -> int:
    """Tokens of the longest request that ``memory`` bytes hold; 0 if none."""
    lengths = range(1, settings.context + 1)
    return bisect_right(lengths, 0, key=lambda n: 0 if _capacity(cache, memory, settings, n).requests else 1)


def _plan_cache(name: str, cache: KvCache, memory: int, settings: Settings) -> CachePlan:
    token = cache.bytes_per_token(settings.kv_dtype)
    return CachePlan(
        name=name,
        token_bytes=token["local"] + token["global"],
        global_token_bytes=token["global"],
        request_bytes=cache.bytes_per_request(settings.kv_dtype, settings.context),
        capacity=_capacity(cache, memory, settings, settings.context),
    )


def _capacity(cache: KvCache, memory: int, settings: Settings, context: int) -> Capacity:
    assert settings.batched_tokens is not None
    return capacity(
        cache,
        dtype=settings.kv_dtype,
        memory=memory,
        context=context,
        tokens_in_flight=settings.batched_tokens * (2 if settings.async_scheduling else 1),
        block_size=settings.block_size,
    )


def _settle(model: Model, devices: Devices, settings: Settings) -> Settings:
    """Check the settings against the model, and decide what was left automatic."""
    config, ranks = model.config, settings.ranks
    if devices.count % ranks:
        raise PlanError(
            f"--tp {ranks} does not divide the number of devices, {devices.count}; write --memory "
            f"{ranks}x... for {ranks} devices"
        )
    for field in _DIVIDED:
        size = getattr(config, field, None)
        if size is not None and size % ranks:
            raise PlanError(f"--tp {ranks} does not divide {field} of {model.name}, {size}; choose a divisor of it")
    kv_heads = getattr(config, "num_key_value_heads", None)
    if kv_heads and max(kv_heads, ranks) % min(kv_heads, ranks):
        raise PlanError(
            f"--tp {ranks} does not divide num_key_value_heads of {model.name}, {kv_heads}; choose a divisor or a "
            "multiple of it"
        )
    longest = config.max_position_embeddings
    if settings.context > longest:
        raise PlanError(
            f"--context {settings.context} is beyond max_position_embeddings of {model.name}, {longest}; plan for at "
            "most that"
        )
    dtype = model.dtype if settings.dtype == AUTO else settings.dtype
    kv_dtype = dtype if settings.kv_dtype == AUTO else settings.kv_dtype
    if dtype not in BYTES:
        raise PlanError(f"--dtype is {dtype!r}, but must be auto or one of {', '.join(BYTES)}")
    if kv_dtype not in (dtype, _EIGHT_BITS):
        raise PlanError(
            f"--kv-dtype is {kv_dtype!r}, but must be auto, {_EIGHT_BITS} or {dtype}, which is the model's own here: "
            "engines' kernels read a cache in no other"
        )
    if settings.block_size not in BLOCK_SIZES:
        raise PlanError(
            f"--block-size is {settings.block_size}, but engines' kernels read blocks of "
            f"{', '.join(map(str, BLOCK_SIZES))} tokens; choose one of these"
        )
    windows = kv_cache(config).local_layers > 0
    batched_tokens = recommended_batched_tokens(settings.context) if windows else MOST_BATCHED_TOKENS
    return replace(settings, dtype=dtype, kv_dtype=kv_dtype, batched_tokens=settings.batched_tokens or batched_tokens)
