"""The errors of trillion_model: every one says what was wrong, what was expected and what to do.

TrillionError
├── ConfigError (also ValueError)      a field of a model configuration is wrong
├── PresetError (also KeyError)        there is no preset of that name
├── CheckpointError                    a checkpoint's tensors or files are wrong
└── OutputError                        a file cannot be written where it was asked for
"""


class TrillionError(Exception):
    """Base of every error that this project raises on purpose."""


class ConfigError(TrillionError, ValueError):
    """A configuration field has a value that the architecture cannot have.

    Args:
        field: name of the field.
        value: what it was.
        expected: what it may be, in words.
    """

    def __init__(self, field: str, value: object, expected: str) -> None:
        self.field = field
        self.value = value
        self.expected = expected
        super().__init__(f"{field} is {value!r}, but must be {expected}")


class PresetError(TrillionError, KeyError):
    """No preset has the name that was asked for."""

    def __str__(self) -> str:
        return str(self.args[0])


class CheckpointError(TrillionError):
    """A checkpoint does not hold the tensors that its configuration calls for."""


class OutputError(TrillionError):
    """A file cannot be written where it was asked for."""
