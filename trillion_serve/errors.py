"""The errors of trillion_serve, all under ``trillion_model.errors.TrillionError``.

ServeError
├── ModelNotFoundError      the model that was named cannot be served: no such directory, preset or hub id
├── ChatError               a chat template or tokenizer cannot do what was asked
│   └── RenderError         the template refuses these messages
├── DemoError               a stage of the demo failed
├── PlanError               a plan cannot be made, or the model does not fit
└── EngineError
    ├── EngineStartError    the engine did not start
    ├── EngineUnavailableError the engine cannot be reached, broke off or took too long; another may do better
    │   └── EngineDeadError the engine stopped and will not come back
    ├── OverloadedError     too many requests are waiting; come back later
    └── RequestRefusedError the engine refuses this request; the next one may be fine
"""

from trillion_model.errors import TrillionError


class ServeError(TrillionError):
    """Base of every error that serving raises on purpose."""


class ModelNotFoundError(ServeError):
    """The model that was named cannot be found, or has nothing to serve."""


class ChatError(ServeError):
    """A tokenizer or its chat template is missing or broken."""


class RenderError(ChatError):
    """The chat template refuses these messages."""


class DemoError(ServeError):
    """A stage of the demo failed."""


class PlanError(ServeError):
    """No plan can be made of what was asked for, or the model does not fit."""


class EngineError(ServeError):
    """Base of what goes wrong inside an engine."""


class EngineStartError(EngineError):
    """The engine did not start."""


class EngineUnavailableError(EngineError):
    """The engine cannot be reached, broke off or took too long. Another try, or another engine, may do better."""


class OverloadedError(EngineError):
    """Too many requests are waiting already.

    Args:
        message: what is full.
        retry_after: seconds after which another try is likely to be taken.
    """

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineDeadError(EngineUnavailableError):
    """The engine has stopped: no request can succeed until the server is started again."""


class RequestRefusedError(EngineError):
    """The engine refuses this one request."""
