"""``/v1/models``."""

from fastapi import APIRouter

from trillion_serve.errors import EngineUnavailableError
from trillion_serve.gateway.models import Models, ServedModel
from trillion_serve.gateway.schema.models import ModelCard, ModelList


def router(models: Models) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.get("/v1/models")
    async def all_models() -> ModelList:
        """The models that the caller may use."""
        return ModelList(data=[_card(model) for model in models.visible()])

    @routes.get("/v1/models/{model_id:path}")
    async def one_model(model_id: str) -> ModelCard:
        """One model."""
        return _card(models.get(model_id))

    return routes


def _card(model: ServedModel) -> ModelCard:
    try:
        context_length = model.engine.info.context_length
    except EngineUnavailableError:
        context_length = None
    return ModelCard(id=model.name, created=model.created, max_model_len=context_length)
