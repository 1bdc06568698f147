"""The errors of trillion_convert; what is wrong with a checkpoint is ``trillion_model.errors.CheckpointError``.

ConvertError (also TrillionError)
├── TargetError   the output cannot be written where it was asked for
├── PromptError   a file of prompts is malformed, or a prompt does not fit the model
└── RunError      a form of a model cannot be loaded or run
"""

from trillion_model.errors import TrillionError


class ConvertError(TrillionError):
    """Base of every error that conversion raises on purpose, other than about a checkpoint's contents."""


class TargetError(ConvertError):
    """The output cannot be written where it was asked for."""


class PromptError(ConvertError):
    """A file of prompts is malformed, or a prompt does not fit the model."""


class RunError(ConvertError):
    """A form of a model cannot be loaded or run."""
