"""Recipes: everything that decides a training run, typed, read from YAML or JSON, overridden by flags."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trillion_training.errors import RecipeError


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Budget(_Section):
    """When a run ends: after so many steps, or after so many minutes of training, whichever comes first.

    The learning rate follows the nearer end. A run bounded by steps alone repeats exactly.
    """

    steps: int | None = Field(default=None, gt=0)
    minutes: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _has_an_end(self) -> "Budget":
        if self.steps is None and self.minutes is None:
            raise ValueError("give steps, minutes or both")
        return self


class Batching(_Section):
    """Documents are packed into rows of at most ``length`` tokens; a micro-batch is ``rows`` of them."""

    length: int = Field(default=128, gt=1)
    rows: int = Field(default=12, gt=0)
    micro_batches: int = Field(default=1, gt=0)


class Schedule(_Section):
    """Warm-up, stable, decay: shares of the run, and the share of the learning rate that is left at the end."""

    warmup: float = Field(default=0.02, ge=0, le=1)
    decay: float = Field(default=0.3, ge=0, le=1)
    floor: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _shares_fit(self) -> "Schedule":
        if self.warmup + self.decay > 1:
            raise ValueError("warmup and decay are shares of the run and must not add up to more than 1")
        return self


class Optimizer(_Section):
    """Muon for the hidden matrices and AdamW for the rest, or AdamW for all.

    Attributes:
        muon_lr: learning rate of the matrices with Muon; its unit is that of AdamW's (see ``muon.py``).
        lr: learning rate of everything else, or of all with AdamW.
        clip: largest norm of the gradient; 0 for no bound.
    """

    name: Literal["muon", "adamw"] = "muon"
    muon_lr: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.95, ge=0, lt=1)
    lr: float = Field(default=0.003, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=1.0, ge=0)


class Losses(_Section):
    """Coefficients of the load-balancing losses beside the next-token loss (VAETKI report, section 2.1)."""

    local_balance: float = Field(default=1e-4, ge=0)
    global_balance: float = Field(default=1e-4, ge=0)


class Checkpoints(_Section):
    """How often state is saved, in steps (0: at the end only), and how many of the last are kept."""

    every: int = Field(default=0, ge=0)
    keep: int = Field(default=2, gt=0)


class Initial(_Section):
    """Initial weights of a new model that differ from its configuration's, which fit large models and long runs.

    With post-norms that start at 1, every sublayer adds as much as the whole stream holds, and embeddings of the
    usual size drown in it: the model then learns to copy late.

    Attributes:
        embedding_std: standard deviation of the embeddings.
        post_norm: factor that each sublayer's output starts with.
    """

    embedding_std: float | None = Field(default=None, gt=0)
    post_norm: float | None = Field(default=None, gt=0)


class Recipe(_Section):
    """One run of ``pretrain`` or ``sft``."""

    budget: Budget
    batching: Batching = Batching()
    schedule: Schedule = Schedule()
    optimizer: Optimizer = Optimizer()
    losses: Losses = Losses()
    checkpoints: Checkpoints = Checkpoints()
    initial: Initial = Initial()
    seed: int = 0
    log_every: int = Field(default=10, gt=0)


def load_recipe(path: Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        path: a YAML or JSON file.
        overrides: dotted field names to values, such as ``{"budget.minutes": 2}``; None leaves the recipe's.

    Raises:
        RecipeError: the file cannot be read, or a field is unknown or out of range; names the field.
    """
    import yaml  # type: ignore[import-untyped]

    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"recipe {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path} is not YAML: {error}") from error
    if not isinstance(fields, dict):
        raise RecipeError(f"recipe {path} must be a mapping of sections, such as 'budget: {{minutes: 2}}'")
    for name, value in (overrides or {}).items():
        if value is not None:
            _assign(fields, name, value)
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise RecipeError(f"recipe {path}: {wrong}") from error


def _assign(fields: dict[str, Any], name: str, value: Any) -> None:
    section, _, rest = name.partition(".")
    if not rest:
        fields[section] = value
        return
    inner = fields.setdefault(section, {})
    if not isinstance(inner, dict):
        raise RecipeError(f"{section} must be a section with fields of its own, but is {inner!r}")
    _assign(inner, rest, value)
