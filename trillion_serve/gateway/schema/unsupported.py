"""The fields that the APIs have, or that vLLM's and SGLang's users add to them, and that no endpoint here supports.

An endpoint that supports one of them declares it anew.
"""

from typing import Annotated, Any

from trillion_serve.gateway.schema.common import RefusedUnlessNull, RequestModel, Unsupported, taken_only_if


class UnsupportedFields(RequestModel):
    """Each takes the values that ask for nothing, and refuses all others: never silence."""

    # Of OpenAI.
    best_of: Annotated[Any, taken_only_if(1)] = None
    suffix: Unsupported = None
    verbosity: Annotated[Any, taken_only_if("medium")] = None
    service_tier: Annotated[Any, taken_only_if("auto", "default")] = None
    modalities: Annotated[Any, taken_only_if([], ["text"])] = None
    audio: Unsupported = None
    prediction: Unsupported = None
    # An empty object asks for a search.
    web_search_options: RefusedUnlessNull = None
    functions: Unsupported = None
    function_call: Annotated[Any, taken_only_if("none")] = None
    store: Unsupported = None

    # How to choose tokens.
    use_beam_search: Unsupported = None
    length_penalty: Annotated[Any, taken_only_if(1.0)] = None
    bad_words: Unsupported = None
    allowed_token_ids: Unsupported = None
    logits_processors: Unsupported = None
    custom_logit_processor: Unsupported = None
    min_new_tokens: Annotated[Any, taken_only_if(0)] = None
    stop_regex: Unsupported = None
    lora_path: Unsupported = None
    vllm_xargs: Unsupported = None

    # What the prompt is.
    documents: Unsupported = None
    chat_template: Unsupported = None
    chat_template_content_format: Annotated[Any, taken_only_if("auto", "string")] = None
    add_generation_prompt: Annotated[Any, taken_only_if(True)] = None
    add_special_tokens: Unsupported = None
    continue_final_message: Unsupported = None
    truncate_prompt_tokens: RefusedUnlessNull = None
    mm_processor_kwargs: Unsupported = None

    # What comes back.
    echo: Unsupported = None
    prompt_logprobs: Unsupported = None
    include_stop_str_in_output: Unsupported = None
    no_stop_trim: Unsupported = None
    skip_special_tokens: Annotated[Any, taken_only_if(True)] = None
    # Tokenizers here write no spaces of their own.
    spaces_between_special_tokens: Annotated[Any, taken_only_if(False, True)] = None
    return_token_ids: Unsupported = None
    return_tokens_as_token_ids: Unsupported = None
    return_hidden_states: Unsupported = None

    # How a form is enforced.
    guided_decoding_backend: Unsupported = None
    guided_whitespace_pattern: Unsupported = None
    structural_tag: Unsupported = None

    # How the engine runs it.
    priority: Annotated[Any, taken_only_if(0)] = None
    cache_salt: Unsupported = None
    kv_transfer_params: Unsupported = None
