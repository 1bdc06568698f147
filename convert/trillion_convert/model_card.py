"""The README.md of an exported model."""

from typing import TYPE_CHECKING

from trillion_model.architecture import chat_format
from trillion_model.sizes import KvCache, Parameters, kv_cache

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_ROWS = {
    "num_hidden_layers": "layers",
    "first_k_dense_replace": "of them dense, at the beginning",
    "hidden_size": "hidden size",
    "num_attention_heads": "attention heads",
    "num_key_value_heads": "key and value heads",
    "q_lora_rank": "query rank",
    "kv_lora_rank": "key and value rank",
    "n_routed_experts": "routed experts a layer",
    "num_experts_per_tok": "routed experts a token",
    "n_shared_experts": "shared experts",
    "moe_intermediate_size": "expert feed-forward size",
    "intermediate_size": "dense feed-forward size",
    "vocab_size": "vocabulary",
    "sliding_window": "window of local layers, tokens",
    "max_position_embeddings": "context, tokens",
}

_TEMPLATE = """---
library_name: transformers
pipeline_tag: text-generation
language:
- ko
- en
tags:
{tags}
---

# {name}

A language model of the {model_type} family with {parameters}.
Weights are {dtype} safetensors in the published layout.

| | |
| --- | --- |
{rows}

{reach}
A layer caches {numbers:,} numbers a token: {kv_bytes:,} bytes of KV cache for a request of {context:,} tokens in
bfloat16.

## Use

With `trillion-serve` installed, in the folder that holds this one:

```
trillion-serve serve ./{name}
```

vLLM finds the architecture through the same package:

```
vllm serve ./{name}
```

and so does Transformers:

```python
import trillion_model
from transformers import AutoModelForCausalLM, AutoTokenizer

trillion_model.register()
model = AutoModelForCausalLM.from_pretrained("./{name}")
tokenizer = AutoTokenizer.from_pretrained("./{name}")
messages = [{{"role": "user", "content": "..."}}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=512)[0]))
```

{thinking}## Licence

Not stated. Whoever publishes this model adds `license` to the metadata above, and what it was trained on to this page.
"""


_THINKING = """The model thinks between `{start}` and `{end}` before it answers; pass `enable_thinking=False`
to the chat template for an answer at once.

"""


def render(name: str, config: "PreTrainedConfig", parameters: Parameters, dtype: str) -> str:
    """Fill in the card of the model called ``name``."""
    cache = kv_cache(config)
    rows = {label: value for field, label in _ROWS.items() if (value := getattr(config, field, None)) is not None}
    total, active = sum(parameters.total.values()), sum(parameters.active.values())
    tags = [config.model_type, *(["mixture-of-experts"] if active < total else [])]
    return _TEMPLATE.format(
        name=name,
        model_type=config.model_type,
        tags="\n".join(f"- {tag}" for tag in tags),
        parameters=f"{total:,} parameters" + (f", of which a token uses {active:,}" if active < total else ""),
        dtype=dtype,
        rows="\n".join(f"| {label} | {value:,} |" for label, value in rows.items()),
        reach=_reach(cache),
        numbers=cache.numbers,
        kv_bytes=cache.bytes_per_request("bfloat16", config.max_position_embeddings),
        context=config.max_position_embeddings,
        thinking=_thinking(config),
    )


def _reach(cache: KvCache) -> str:
    if not cache.local_layers:
        return "Every layer sees every token."
    return f"{cache.global_layers} layers see every token and {cache.local_layers} see the last {cache.window}."


def _thinking(config: "PreTrainedConfig") -> str:
    """What the family's chat format says of thinking: nothing where it has none."""
    tokens = chat_format(config)
    if tokens is None or not hasattr(tokens, "THINK_END"):
        return ""
    return _THINKING.format(start=tokens.THINK_START, end=tokens.THINK_END)
