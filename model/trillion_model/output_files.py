"""Files that commands write beside what they print: refused before the work, and never with a traceback."""

import os
from pathlib import Path

from trillion_model.errors import OutputError


def check_output(path: Path | None) -> Path | None:
    """A file that may be written, or None; for commands to call before they begin, as a callback of an option.

    Raises:
        OutputError: it is a directory, its folder is missing, or one of them is read-only.
    """
    if path is None:
        return None
    if path.is_dir():
        raise OutputError(f"{path} is a directory; name a file to write")
    if not path.parent.is_dir():
        raise OutputError(f"{path} cannot be written: there is no directory {path.parent}; make it first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise OutputError(f"{path} cannot be written: no permission; name a file in a directory of your own")
    return path


def write_output(path: Path, text: str) -> None:
    """Write ``text`` with a line break at its end.

    Raises:
        OutputError: the system refuses it.
    """
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error
