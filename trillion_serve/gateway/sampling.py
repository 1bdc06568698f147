"""The sampling of a request: what it says, else what the model's generation config says, else the API's defaults."""

import json
from dataclasses import dataclass
from typing import Any

from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.engines.protocol import EngineInfo, SamplingParams
from trillion_serve.errors import ChatError
from trillion_serve.gateway.errors import ApiError
from trillion_serve.gateway.raw_prompts import check_token_ids
from trillion_serve.gateway.schema.sampling import SamplingFields


@dataclass(frozen=True)
class SamplingDefaults:
    """What a request that says nothing gets: the model's own generation config, else the API's defaults."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    end_ids: tuple[int, ...] = ()

    @classmethod
    def load(cls, model: str) -> "SamplingDefaults":
        """Read ``generation_config.json`` of a directory or hub id, if it has one.

        Raises:
            ChatError: the file is broken.
        """
        from transformers.utils import cached_file

        path = cached_file(
            model,
            "generation_config.json",
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if path is None:
            return cls()
        try:
            with open(path, encoding="utf-8") as file:
                config = json.load(file)
        except (OSError, json.JSONDecodeError) as error:
            raise ChatError(f"generation_config.json of {model} cannot be read: {error}") from error
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        values: dict[str, Any] = {name: config[name] for name in names if config.get(name) is not None}
        if config.get("do_sample") is False:
            values["temperature"] = 0.0
        ends = config.get("eos_token_id")
        ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
        return cls(**values, end_ids=tuple(ends))


def check_ids(tokenizer: ChatTokenizer, request: SamplingFields) -> None:
    """Refuse tokens that the tokenizer does not have. The first time, this reads the whole vocabulary.

    Raises:
        ApiError: a request names one; ``param`` is the field.
    """
    check_token_ids(tokenizer, request.stop_token_ids or (), "stop_token_ids")
    check_token_ids(tokenizer, request.logit_bias or (), "logit_bias")


def sampling_of(
    request: SamplingFields,
    defaults: SamplingDefaults,
    info: EngineInfo,
    *,
    prompt_tokens: int,
    end_ids: tuple[int, ...],
    top_logprobs: int | None = None,
    param: str = "messages",
) -> SamplingParams:
    """The sampling parameters of a request.

    Args:
        request: the fields that it gave.
        defaults: for those that it did not.
        info: of the engine that will run it.
        prompt_tokens: length of its prompt.
        end_ids: tokens that end an answer.
        top_logprobs: alternatives to each token, None for no log-probabilities.
        param: the field that the prompt comes from, for the error.

    Raises:
        ApiError: prompt and answer do not fit in the context.
    """
    room = info.context_length - prompt_tokens
    if room < 1 or (request.token_limit or 1) > room:
        wanted = f" and {request.token_limit} more were asked for" if request.token_limit else ""
        raise ApiError(
            f"the context holds {info.context_length} tokens, but the prompt has {prompt_tokens}{wanted}; "
            f"shorten the {param} or ask for fewer tokens",
            code="context_length_exceeded",
            param=param if room < 1 else "max_tokens",
        )

    def chosen(value: float | None, default: float) -> float:
        return default if value is None else value

    ends = () if request.ignore_eos else end_ids
    return SamplingParams(
        max_tokens=request.token_limit or room,
        min_tokens=request.min_tokens or 0,
        temperature=chosen(request.temperature, defaults.temperature),
        top_p=chosen(request.top_p, defaults.top_p),
        # The API's two ways to keep every token.
        top_k=max(defaults.top_k if request.top_k is None else request.top_k, 0),
        min_p=chosen(request.min_p, defaults.min_p),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_penalty=chosen(request.repetition_penalty, defaults.repetition_penalty),
        seed=request.seed,
        stop_token_ids=(*ends, *(request.stop_token_ids or ())),
        top_logprobs=top_logprobs,
        logit_bias=request.logit_bias or {},
    )
