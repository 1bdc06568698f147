"""Training checkpoints and published directories in plain PyTorch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trillion_convert.checkpoint import Checkpoint
from trillion_convert.forms import Form
from trillion_convert.verify.runner import Continuation, Request

if TYPE_CHECKING:
    import torch


class TorchModel:
    """A model in this process, on a GPU where there is one.

    Args:
        model: with the Hugging Face interface.
        ends: tokens that end a continuation.
    """

    def __init__(self, model: Any, ends: Sequence[int]) -> None:
        import torch

        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = model.to(self._device).eval()
        self._ends = list(ends)

    def greedy(self, requests: Sequence[Request]) -> list[Continuation]:
        return [self._continue(request) for request in requests]

    def score(self, sequences: Sequence[tuple[int, ...]]) -> list[list[float]]:
        import torch

        scores = []
        with torch.inference_mode():
            for sequence in sequences:
                ids = torch.tensor([sequence], device=self._device)
                logits = self._model(input_ids=ids, use_cache=False).logits[0, :-1].float()  # (seq - 1, vocab)
                chosen = logits.gather(-1, ids[0, 1:, None])[:, 0]
                scores.append((chosen - logits.logsumexp(-1)).tolist())
        return scores

    def close(self) -> None:
        del self._model

    def _continue(self, request: Request) -> Continuation:
        import torch
        from transformers import GenerationConfig

        ids = torch.tensor([request.token_ids], device=self._device)
        options = GenerationConfig(
            max_new_tokens=request.max_tokens,
            do_sample=False,
            eos_token_id=self._ends or None,
            pad_token_id=self._ends[0] if self._ends else 0,
            return_dict_in_generate=True,
            output_logits=True,
        )
        with torch.inference_mode():
            output = self._model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=options)
        # Greedy tokens are the first of each pair.
        best = [step[0].float().log_softmax(-1).topk(2).values for step in output.logits]  # (2,) each
        return Continuation(
            tuple(output.sequences[0, ids.shape[1] :].tolist()),
            tuple((first - second).item() for first, second in best),
            tuple(first.item() for first, _ in best),
        )


class TorchRunner(TorchModel):
    """A checkpoint in our modelling code.

    Args:
        checkpoint: read into our modules directly (``train``), through ``from_pretrained`` (``hf``), or through its
            published tensors: a quantised directory is dequantised, its activations stay as they are.
        dtype: name of the dtype to run in.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: str) -> None:
        super().__init__(load_model(checkpoint, dtype), checkpoint.ends)


def load_model(checkpoint: Checkpoint, dtype: str) -> Any:
    """A checkpoint's model, in our modelling code."""
    import torch

    if checkpoint.form is Form.TRAIN:
        load = _from_training
    elif checkpoint.form is Form.HF and checkpoint.recipe is None:
        load = _from_published
    else:
        load = _from_published_tensors
    return load(checkpoint, getattr(torch, dtype))


def _from_training(checkpoint: Checkpoint, dtype: "torch.dtype") -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(checkpoint.architecture.config, dtype=dtype)
    model.load_state_dict({name: checkpoint.tensors.read(name) for name in checkpoint.tensors})
    return model


def _from_published(checkpoint: Checkpoint, dtype: "torch.dtype") -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint.directory, dtype=dtype, local_files_only=True)


def _from_published_tensors(checkpoint: Checkpoint, dtype: "torch.dtype") -> Any:
    from transformers import AutoModelForCausalLM

    from trillion_convert.conversion import PublishedReader
    from trillion_convert.quantize.plain import PlainTensors

    read = PublishedReader(checkpoint).read if checkpoint.recipe is None else PlainTensors(checkpoint).read
    architecture = checkpoint.architecture
    model = AutoModelForCausalLM.from_config(architecture.config, dtype=dtype)
    model.load_state_dict(
        {name: architecture.layout.to_module(name, shape, read) for name, shape in architecture.module_shapes.items()}
    )
    return model
