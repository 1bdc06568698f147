"""The forms that a model can be run in, and how they are named on the command line."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from trillion_convert.checkpoint import Form, find
from trillion_convert.errors import RunError


class RunForm(StrEnum):
    """How a directory is run."""

    TRAIN = "train"
    """A training checkpoint, loaded into our modules under their own names."""
    HF = "hf"
    """A published directory, through Transformers' ``from_pretrained``."""
    VLLM = "vllm"
    """A published directory, in vLLM."""

    @property
    def checkpoint_form(self) -> Form:
        """How the directory's tensors are named."""
        return Form.TRAIN if self is RunForm.TRAIN else Form.HF


@dataclass(frozen=True)
class Target:
    """One of the two sides of a comparison."""

    form: RunForm
    path: Path

    @classmethod
    def parse(cls, text: str) -> "Target":
        """Read ``FORM:PATH``, or a path whose form is ``train`` or ``hf`` by what lies there.

        Raises:
            RunError: what stands before the colon is no form, and there is no such path.
        """
        form, colon, path = text.partition(":")
        if colon and form in set(RunForm):
            return cls(RunForm(form), Path(path))
        if colon and not Path(text).exists():
            raise RunError(f"{text!r} is neither a path nor FORM:PATH; the forms are {', '.join(RunForm)}")
        return cls(RunForm(find(Path(text))[1]), Path(text))

    def __str__(self) -> str:
        return f"{self.form}:{self.path}"
