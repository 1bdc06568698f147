"""What ``/v1/models`` gives back."""

from typing import Literal

from pydantic import BaseModel


class ModelCard(BaseModel):
    """A model that is served here."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "trillion-serve"
    max_model_len: int | None
    """None while no engine of the model has been reached yet."""


class ModelList(BaseModel):
    """The models that are served here."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
