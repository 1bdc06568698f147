"""``trillion-convert quantize``: published checkpoints in compressed-tensors form, as vLLM and SGLang read them."""
