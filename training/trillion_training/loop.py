"""The training loop: one process, the same for pre-training and fine-tuning."""

import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from trillion_training import checkpoint
from trillion_training.checkpoint import Progress, Saved
from trillion_training.data.packing import Batch, Document
from trillion_training.data.stream import PackedStream
from trillion_training.errors import StateError
from trillion_training.losses import StepLosses, backward
from trillion_training.metrics import Reporter, StepMetrics
from trillion_training.optimizers import (
    build_optimizers,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rates,
)
from trillion_training.schedule import run_progress, wsd_factor

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

METRICS_FILE = "metrics.jsonl"


class Trainer:
    """Trains a model on documents.

    Args:
        model: trained in place.
        tokenizer: saved beside the model; its padding id fills rows.
        documents: what to train on.
        progress: where the run is, with its recipe; a new run's is at step 0.
        out: the run's directory.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        documents: list[Document],
        progress: Progress,
        out: Path,
    ) -> None:
        recipe = progress.recipe
        self.model = model
        self.tokenizer = tokenizer
        self.progress = progress
        self.out = out
        self.optimizers = build_optimizers(model, recipe.optimizer)
        self.stream = PackedStream(
            documents,
            recipe.batching.length,
            recipe.batching.rows,
            tokenizer.pad_token_id,
            recipe.seed,
            progress.position,
        )

    def restore(self, saved: Saved) -> None:
        """Put back the state of the optimisers and of the random generator.

        Raises:
            StateError: the state is of other optimisers than the recipe's.
        """
        try:
            load_optimizer_tensors(self.model, self.optimizers, saved.optimizer)
        except (KeyError, ValueError) as error:
            raise StateError(f"the checkpoint's optimiser state does not fit the recipe: {error}") from error
        torch.set_rng_state(saved.random_state)

    def run(self) -> Path:
        """Train to the end of the budget; returns the last checkpoint."""
        recipe, progress = self.progress.recipe, self.progress
        self.model.train()
        self.out.mkdir(parents=True, exist_ok=True)
        batches = iter(self.stream)
        seconds_before, tokens_before, began = progress.seconds, progress.tokens, time.monotonic()
        saved_step = None
        with Reporter(self.out / METRICS_FILE, progress.stage) as reporter:
            while (done := run_progress(recipe.budget, progress.step, progress.seconds)) < 1:
                factor = wsd_factor(recipe.schedule, done)
                losses, norm = self._step(list(islice(batches, recipe.batching.micro_batches)), factor)
                elapsed = time.monotonic() - began
                progress.seconds = seconds_before + elapsed
                speed = (progress.tokens - tokens_before) / elapsed
                reporter.advance(done, losses.next_token, speed)
                if progress.step % recipe.log_every == 0 or progress.step == 1:
                    reporter.log(
                        StepMetrics(
                            step=progress.step,
                            loss=losses.next_token,
                            local_balance=losses.local_balance,
                            global_balance=losses.global_balance,
                            lr_factor=factor,
                            grad_norm=norm,
                            tokens=progress.tokens,
                            seconds=progress.seconds,
                            tokens_per_second=speed,
                        )
                    )
                if recipe.checkpoints.every and progress.step % recipe.checkpoints.every == 0:
                    self._save()
                    saved_step = progress.step
            if saved_step != progress.step:
                self._save()
        return checkpoint.find(self.out)

    def _step(self, batches: list[Batch], lr_factor: float) -> tuple[StepLosses, float]:
        """Take one step; returns its losses and the gradient's norm."""
        config = self.progress.recipe.optimizer
        set_learning_rates(self.optimizers, lr_factor)
        losses = backward(self.model, batches, self.progress.recipe.losses)
        bound = config.clip or float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), bound))
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        self.progress.step += 1
        self.progress.tokens += sum(batch.tokens for batch in batches)
        return losses, norm

    def _save(self) -> None:
        state = optimizer_tensors(self.model, self.optimizers)
        checkpoint.save(self.out, self.model, self.tokenizer, state, self.progress)
        checkpoint.prune(self.out, self.progress.recipe.checkpoints.keep)
