"""The README.md of an exported model."""

from typing import TYPE_CHECKING

from trillion_model.sizes import Parameters, kv_cache

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_ROWS = {
    "num_hidden_layers": "layers",
    "first_k_dense_replace": "of them dense, at the beginning",
    "hidden_size": "hidden size",
    "num_attention_heads": "attention heads",
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
- {model_type}
- mixture-of-experts
---

# {name}

A language model of the {model_type} family with {total:,} parameters, of which a token uses {active:,}. Weights are
{dtype} safetensors in the published layout.

| | |
| --- | --- |
{rows}

{global_layers} layers see every token and {local_layers} see the last {window}. A layer caches {numbers} numbers a
token, shared by all heads: {kv_bytes:,} bytes of KV cache for a request of {context:,} tokens in bfloat16.

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

The model thinks between `<think>` and `</think>` before it answers; pass `enable_thinking=False` to the chat template
for an answer at once.

## Licence

Not stated. Whoever publishes this model adds `license` to the metadata above, and what it was trained on to this page.
"""


def render(name: str, config: "PreTrainedConfig", parameters: Parameters, dtype: str) -> str:
    """Fill in the card of the model called ``name``."""
    cache = kv_cache(config)
    return _TEMPLATE.format(
        name=name,
        model_type=config.model_type,
        total=sum(parameters.total.values()),
        active=sum(parameters.active.values()),
        dtype=dtype,
        rows="\n".join(f"| {label} | {getattr(config, field):,} |" for field, label in _ROWS.items()),
        global_layers=cache.global_layers,
        local_layers=cache.local_layers,
        window=cache.window,
        numbers=cache.numbers,
        kv_bytes=cache.bytes_per_request("bfloat16", config.max_position_embeddings),
        context=config.max_position_embeddings,
    )
