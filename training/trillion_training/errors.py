"""The errors of trillion_training.

TrainingError (also TrillionError)
├── RecipeError       a recipe or a flag has a field that is unknown, missing or out of range
├── DataError         a data file is missing, malformed or does not fit; names the file and the line
├── TokenizerError    a tokenizer cannot be trained, or does not fit the model
├── EvaluationError   a model that is evaluated does not answer
└── StateError        a run directory or checkpoint cannot be continued from
"""

from pathlib import Path

from trillion_model.errors import TrillionError


class TrainingError(TrillionError):
    """Base of the errors of training."""


class RecipeError(TrainingError):
    """A recipe has a field that is unknown, missing or out of range."""


class DataError(TrainingError):
    """A data file is missing, malformed or does not fit.

    Args:
        path: the file.
        problem: what is wrong and what was expected.
        line: number of the line, from 1, when one is at fault.
    """

    def __init__(self, path: Path, problem: str, line: int | None = None) -> None:
        self.path = path
        self.line = line
        super().__init__(f"{path}:{line}: {problem}" if line else f"{path}: {problem}")


class TokenizerError(TrainingError):
    """A tokenizer cannot be trained as asked, or does not fit the model."""


class EvaluationError(TrainingError):
    """A model that is evaluated does not answer."""


class StateError(TrainingError):
    """A run directory or a checkpoint does not hold what continuing needs."""
