"""The forms that a model can be run in, and how they are named on the command line."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from trillion_convert.checkpoint import find
from trillion_convert.errors import RunError
from trillion_convert.forms import Form

_SCHEMES = ("http://", "https://")


class RunForm(StrEnum):
    """How a directory, or a server, is run."""

    TRAIN = "train"
    """A training checkpoint, loaded into our modules under their own names."""
    HF = "hf"
    """A published directory, through Transformers' ``from_pretrained``."""
    MEGATRON = "megatron"
    """A directory in Megatron-Core's names, loaded into our modules."""
    VLLM = "vllm"
    """A published directory in vLLM, or a running vLLM server."""
    SGLANG = "sglang"
    """A running SGLang server."""

    @property
    def checkpoint_form(self) -> Form | None:
        """How the directory's tensors are named; None where that is to be seen there."""
        return {RunForm.TRAIN: Form.TRAIN, RunForm.MEGATRON: None}.get(self, Form.HF)


@dataclass(frozen=True)
class Target:
    """One of the two sides of a comparison.

    Attributes:
        form: how it is run.
        path: its directory, or the URL of a server.
    """

    form: RunForm
    path: Path | str

    @classmethod
    def parse(cls, text: str) -> "Target":
        """Read ``FORM:PATH``, ``FORM:URL``, or a path whose form is ``train`` or ``hf`` by what lies there.

        Raises:
            RunError: what stands before the colon is no form and there is no such path, or the form has no server,
                or only servers.
        """
        form, colon, path = text.partition(":")
        if colon and form in set(RunForm):
            return cls._of(RunForm(form), path)
        if text.startswith(_SCHEMES):
            raise RunError(f"{text} may be either kind of server; write vllm:{text} or sglang:{text}")
        if colon and not Path(text).exists():
            raise RunError(f"{text!r} is neither a path nor FORM:PATH; the forms are {', '.join(RunForm)}")
        return cls(RunForm(find(Path(text))[1]), Path(text))

    @classmethod
    def _of(cls, form: RunForm, path: str) -> "Target":
        server = path.startswith(_SCHEMES)
        if server and form not in (RunForm.VLLM, RunForm.SGLANG):
            raise RunError(f"{form} is a directory's form, but {path} is a server; write vllm:{path} or sglang:{path}")
        if not server and form is RunForm.SGLANG:
            raise RunError(
                f"SGLang is compared as a running server: start one on {path} and write sglang:http://127.0.0.1:30000"
            )
        return cls(form, path if server else Path(path))

    @property
    def url(self) -> str | None:
        """Where the server answers; None for a directory."""
        return self.path if isinstance(self.path, str) else None

    def __str__(self) -> str:
        return f"{self.form}:{self.path}"
