"""``/admin``: what runs, and changing it. Whoever comes here has shown an admin key."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from trillion_serve.errors import ServeError
from trillion_serve.gateway.config import ReplicaConfig
from trillion_serve.gateway.deployment import Deployment
from trillion_serve.gateway.errors import ApiError


def router(deployment: Deployment) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/admin", include_in_schema=False)

    @routes.get("/models")
    async def models() -> dict[str, Any]:
        """All models and their replicas, in figures."""
        return {"models": [_snapshot(deployment, model.name) for model in deployment.models]}

    @routes.post("/models/{model:path}/replicas", status_code=201)
    async def add(model: str, replica: ReplicaConfig) -> dict[str, Any]:
        """Add a replica. It takes requests as soon as it can be reached."""
        deployment.add_replica(model, replica)
        return _snapshot(deployment, model)

    @routes.post("/models/{model:path}/replicas/{name}/drain", status_code=202)
    async def drain(model: str, name: str) -> dict[str, Any]:
        """Send a replica no more requests; what it has it finishes."""
        await deployment.drain_replica(model, name)
        return _snapshot(deployment, model)

    @routes.delete("/models/{model:path}/replicas/{name}", status_code=202)
    async def remove(model: str, name: str) -> dict[str, Any]:
        """Drain a replica and let it go."""
        await deployment.remove_replica(model, name)
        return _snapshot(deployment, model)

    @routes.post("/reload")
    async def reload() -> dict[str, Any]:
        """Read the configuration again; one that is wrong changes nothing."""
        try:
            return {"changes": await deployment.reload()}
        except ServeError as error:
            raise ApiError(f"nothing was changed: {error}", code="invalid_configuration") from error

    return routes


def _snapshot(deployment: Deployment, name: str) -> dict[str, Any]:
    model = deployment.models.get(name)
    pool = None if model.pool is None else asdict(model.pool.snapshot())
    return {"name": name, "created": model.created, "pool": pool}
