"""Everything of a directory that is not weights: configuration, tokenizer, generation settings, model card."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trillion_convert import model_card
from trillion_convert.checkpoint import Checkpoint
from trillion_convert.forms import FORMS, Form
from trillion_convert.remote_code import write_remote_code
from trillion_convert.tokenizer import copy_tokenizer
from trillion_model.architecture import chat_format
from trillion_model.sizes import count_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from trillion_model.architecture import Architecture

_GENERATION = "generation_config.json"
_TEMPERATURE, _TOP_P = 0.6, 0.95


@dataclass(frozen=True)
class SmallFiles:
    """What goes beside converted weights.

    Attributes:
        source: whose tokenizer and settings are taken over.
        tokenizer: the source's, as read.
        architecture: the target's.
        dtype: what most weights are stored in.
        name: the target's, for the model card.
        remote_code: put modelling files beside the weights.
    """

    source: Checkpoint
    tokenizer: "PreTrainedTokenizerBase"
    architecture: "Architecture"
    dtype: str
    name: str
    remote_code: bool = False

    def write(self, form: Form, folder: Path) -> None:
        """Write them as ``form`` has them."""
        tokenizer_folder = folder / FORMS[form].tokenizer
        tokenizer_folder.mkdir(exist_ok=True)
        copy_tokenizer(self.source.tokenizer_directory, tokenizer_folder)
        if form is Form.TRAIN:
            self._write_training(folder)
            return
        self._write_published(folder)
        if form is Form.HF:
            card = model_card.render(self.name, self._config(), count_parameters(self.architecture), self.dtype)
            (folder / "README.md").write_text(card, encoding="utf-8")

    def _write_published(self, folder: Path) -> None:
        """Ours come after the tokenizer's, so that they win."""
        ours = chat_format(self.architecture.config)
        if self.tokenizer.chat_template is None and ours is not None:
            (folder / "chat_template.jinja").write_text(ours.chat_template(), encoding="utf-8")
        config = self._config()
        if self.remote_code:
            config.auto_map = write_remote_code(self.architecture, folder)
        config.save_pretrained(folder)
        self._write_generation(folder, config)

    def _write_training(self, folder: Path) -> None:
        self._config().to_json_file(folder / "config.json")
        # Says that the directory is a training checkpoint; it has no state to resume from, only weights to start from.
        progress = {"stage": "import", "step": 0, "tokens": 0}
        (folder / "trainer.json").write_text(json.dumps(progress, indent=2) + "\n", encoding="utf-8")

    def _write_generation(self, folder: Path, config: "PreTrainedConfig") -> None:
        from transformers import GenerationConfig

        stated = self.source.directory / _GENERATION
        if self.source.form is not Form.TRAIN and stated.is_file():
            shutil.copyfile(stated, folder / _GENERATION)
            return
        GenerationConfig(
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id if config.pad_token_id is None else config.pad_token_id,
            do_sample=True,
            temperature=_TEMPERATURE,
            top_p=_TOP_P,
        ).save_pretrained(folder)

    def _config(self) -> "PreTrainedConfig":
        config = self.architecture.config.from_dict(self.architecture.config.to_dict())
        config.architectures = [self.architecture.class_name]
        config.dtype = self.dtype
        # Names files that are beside the source, which the target has only where they are bundled anew.
        config.__dict__.pop("auto_map", None)
        return config
