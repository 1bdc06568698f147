"""A training checkpoint as trillion-train leaves it."""

import json
from pathlib import Path

from safetensors.torch import save_file


def write_training_checkpoint(folder: Path, model, tokenizer) -> Path:
    """Write config, stacked weights and tokenizer, and a trainer.json beside them."""
    model.config.to_json_file(folder / "config.json")
    save_file({name: t.detach().contiguous() for name, t in model.state_dict().items()}, folder / "model.safetensors")
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "trainer.json").write_text(json.dumps({"step": 1}))
    return folder
