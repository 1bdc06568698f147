"""``/tokenize`` and ``/detokenize``."""

import asyncio

from fastapi import APIRouter, Request, Response

from trillion_serve.chat.continuation import RawText
from trillion_serve.chat.render import render
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.gateway.errors import ApiError
from trillion_serve.gateway.json_route import JsonRoute
from trillion_serve.gateway.models import Models, ServedModel
from trillion_serve.gateway.prepare import variables_of
from trillion_serve.gateway.raw_prompts import check_token_ids, encode_raw
from trillion_serve.gateway.schema.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from trillion_serve.gateway.streaming import json_response


def router(models: Models) -> APIRouter:
    """The routes."""
    routes = APIRouter(route_class=JsonRoute)

    @routes.post("/tokenize", response_model=TokenizeResponse)
    async def tokenize(body: TokenizeRequest, request: Request) -> Response:
        """The tokens of a text, or of a conversation."""
        # Long texts would hold up every other request.
        return json_response(await asyncio.to_thread(_tokenize, _model(models, body.model), body))

    @routes.post("/detokenize", response_model=DetokenizeResponse)
    async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
        """The text of tokens."""
        tokenizer = _model(models, body.model).tokenizer
        return json_response(DetokenizeResponse(prompt=await asyncio.to_thread(_detokenize, tokenizer, body.tokens)))

    return routes


def _model(models: Models, name: str | None) -> ServedModel:
    if name is not None:
        return models.get(name)
    names = [model.name for model in models.visible()]
    if len(names) > 1:
        raise ApiError(
            f"several models are served here: name one of {', '.join(map(repr, names))}",
            code="invalid_value",
            param="model",
        )
    return models.get(names[0] if names else "")


def _tokenize(model: ServedModel, request: TokenizeRequest) -> TokenizeResponse:
    if request.prompt is not None:
        ids = [token.id for token in encode_raw(model.tokenizer, request.prompt, request.add_special_tokens)]
    else:
        ids = _conversation(model, request)
    return TokenizeResponse(
        count=len(ids),
        max_model_len=model.engine.info.context_length,
        tokens=ids,
        token_strs=[model.tokenizer.backend.id_to_token(token_id) or "" for token_id in ids]
        if request.return_token_strs
        else None,
    )


def _conversation(model: ServedModel, request: TokenizeRequest) -> list[int]:
    prompt = render(
        model.tokenizer,
        [message.model_dump(exclude_none=True) for message in request.messages or ()],
        tools=[tool.model_dump(exclude_none=True) for tool in request.offered_tools],
        thinking=model.thinking.thinks(request.wish),
        template_variables=variables_of(request.wish, request.template_variables),
        add_generation_prompt=request.add_generation_prompt is not False,
    )
    return list(prompt.token_ids)


def _detokenize(tokenizer: ChatTokenizer, token_ids: list[int]) -> str:
    check_token_ids(tokenizer, token_ids, "tokens")
    text = RawText(tokenizer)
    return "".join(map(text.decode, token_ids)) + text.flush()
