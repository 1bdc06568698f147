"""The journal of a directory that is being written: which of its files are on disk, so that a killed run can go on.

A line of JSON each: first the plan's digest, then every file that was finished, with its size and digest. A line is
flushed to disk after the file that it speaks of, so that what the journal says is so whenever the run was killed.
"""

import json
import os
import threading
from pathlib import Path

from pydantic import ValidationError

from trillion_convert.manifest import FileEntry, digest_files


class Journal:
    """Finished files of one plan.

    Args:
        path: the journal; need not exist.
        folder: where the files are.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self.path = path
        self.folder = folder
        self.finished: dict[str, FileEntry] = {}
        self._lock = threading.Lock()

    def resume(self, plan: str) -> bool:
        """Take over what an earlier run of ``plan`` finished; False where the journal is of another plan.

        Files are read again and held against their digests: what does not agree is not taken over.
        """
        lines = self._lines()
        if not lines or lines[0] != {"plan": plan}:
            return False
        told: dict[str, FileEntry] = {}
        for line in lines[1:]:
            try:
                file = str(line.pop("file"))
                told[file] = FileEntry.model_validate(line)
            except (KeyError, ValidationError):
                return False
        there = [file for file in told if (self.folder / file).is_file()]
        found = digest_files(self.folder, there)
        self._write(plan, {file: entry for file, entry in found.items() if entry == told[file]})
        return True

    def begin(self, plan: str) -> None:
        """Start anew."""
        self._write(plan, {})

    def add(self, file: str, entry: FileEntry) -> None:
        """Note a file that is on disk."""
        with self._lock, self.path.open("a", encoding="utf-8") as journal:
            journal.write(_line({"file": file, **entry.model_dump()}))
            journal.flush()
            os.fsync(journal.fileno())
            self.finished[file] = entry

    def _write(self, plan: str, finished: dict[str, FileEntry]) -> None:
        # Whole and under another name first: behind a line that was cut off, nothing could be appended.
        lines = [{"plan": plan}, *({"file": file, **entry.model_dump()} for file, entry in finished.items())]
        fresh = self.path.with_suffix(".fresh")
        fresh.write_text("".join(map(_line, lines)), encoding="utf-8")
        os.replace(fresh, self.path)
        self.finished = dict(finished)

    def _lines(self) -> list[dict[str, object]]:
        """Whole lines; one that a kill cut off, or that is damaged, ends the list."""
        lines: list[dict[str, object]] = []
        if self.path.is_file():
            for text in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    line = json.loads(text)
                except ValueError:
                    break
                if not isinstance(line, dict):
                    break
                lines.append(line)
        return lines


def _line(fields: dict[str, object]) -> str:
    return json.dumps(fields) + "\n"
