"""Where trillion_serve keeps what it makes: demo models, converted presets, caches."""

import os
from pathlib import Path


def home() -> Path:
    """The state directory: ``$TRILLION_SERVE_HOME``, or ``~/.cache/trillion_serve``. It may not exist yet."""
    configured = os.environ.get("TRILLION_SERVE_HOME")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "trillion_serve"
