"""Training checkpoints and published directories in plain PyTorch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trillion_convert.checkpoint import Checkpoint, Form
from trillion_convert.verify.runner import Continuation, Request

if TYPE_CHECKING:
    import torch


class TorchRunner:
    """A model in this process, on a GPU where there is one.

    Args:
        checkpoint: read into our modules directly (``train``) or through ``from_pretrained`` (``hf``).
        dtype: name of the dtype to run in.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: str) -> None:
        import torch

        load = _from_training if checkpoint.form is Form.TRAIN else _from_published
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = load(checkpoint, getattr(torch, dtype)).to(self._device).eval()
        end = checkpoint.architecture.config.eos_token_id
        self._ends = end if isinstance(end, list) else [end]

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
            eos_token_id=self._ends,
            pad_token_id=self._ends[0],
            return_dict_in_generate=True,
            output_logits=True,
        )
        with torch.inference_mode():
            output = self._model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=options)
        best = [step[0].float().topk(2).values for step in output.logits]  # (2,) each
        return Continuation(
            tuple(output.sequences[0, ids.shape[1] :].tolist()),
            tuple((first - second).item() for first, second in best),
        )


def _from_training(checkpoint: Checkpoint, dtype: "torch.dtype") -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(checkpoint.architecture.config, dtype=dtype)
    model.load_state_dict({name: checkpoint.tensors.read(name) for name in checkpoint.tensors})
    return model


def _from_published(checkpoint: Checkpoint, dtype: "torch.dtype") -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint.directory, dtype=dtype, local_files_only=True)
