"""``manifest.json``: what a directory that we wrote holds, file by file, with digests.

    {"tool": "trillion-convert 0.1.0", "command": "export", "digest": "blake3",
     "sources": [{"name": "sft", "fingerprint": "..."}],
     "files": {"model.safetensors": {"size": 1605696, "digest": "..."}}}

A file's digest is plain BLAKE3, so ``b3sum`` gives the same. A source's fingerprint is made of the names, sizes and
times of its files: it tells whether the same files were read, and is no digest of what they hold.
"""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from trillion_model.errors import CheckpointError

MANIFEST = "manifest.json"
_CHUNK = 8 * 2**20


class FileEntry(BaseModel):
    """A file's size in bytes and its BLAKE3 digest in hexadecimal."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int
    digest: str


class Source(BaseModel):
    """A directory that was read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    fingerprint: str


class Manifest(BaseModel):
    """What a command wrote, from what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tool: str
    command: str
    digest: str = "blake3"
    sources: list[Source]
    files: dict[str, FileEntry]


def tool() -> str:
    """This program and its version."""
    return f"trillion-convert {version('trillion-serve')}"


def digest_file(path: Path) -> FileEntry:
    """Size and digest of a file, read a little at a time."""
    from blake3 import blake3

    hasher, size = blake3(), 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
            size += len(chunk)
    return FileEntry(size=size, digest=hasher.hexdigest())


def digest_files(folder: Path, files: Sequence[str]) -> dict[str, FileEntry]:
    """Size and digest of several files of a folder, read side by side."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return dict(zip(files, pool.map(lambda file: digest_file(folder / file), files), strict=True))


def fingerprint(directory: Path) -> str:
    """A digest of the names, sizes and times of a directory's files, without reading them."""
    from blake3 import blake3

    files = sorted(path for path in directory.rglob("*") if path.is_file())
    stats = [(path.relative_to(directory).as_posix(), path.stat()) for path in files]
    return blake3(json.dumps([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]).encode()).hexdigest()


def write_manifest(folder: Path, command: str, sources: Sequence[Source], known: dict[str, FileEntry]) -> None:
    """Write the manifest of a folder; files that ``known`` lacks are read for their digests."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST]
    names = [path.relative_to(folder).as_posix() for path in paths]
    entries = known | digest_files(folder, [name for name in names if name not in known])
    manifest = Manifest(
        tool=tool(), command=command, sources=list(sources), files={name: entries[name] for name in names}
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest of a directory; None where there is none.

    Raises:
        CheckpointError: it is malformed, or names a file outside the directory.
    """
    path = directory / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is no manifest of ours: {error}; write the directory again") from error
    if manifest.digest != "blake3":
        raise CheckpointError(f"digest in {path} is {manifest.digest!r}, but must be 'blake3'")
    for name in manifest.files:
        if name.startswith("/") or "\\" in name or ".." in Path(name).parts:
            raise CheckpointError(f"{path} lists {name!r}, which is outside the directory; write the directory again")
    return manifest


def check_manifest(directory: Path) -> int | None:
    """Hold every file against the manifest; returns how many there are, or None where there is no manifest.

    Files that the manifest does not list are allowed, weights excepted.

    Raises:
        CheckpointError: a file is missing, has another size or digest, or is a weight file that is not listed.
    """
    manifest = read_manifest(directory)
    if manifest is None:
        return None
    for name, entry in manifest.files.items():
        path = directory / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing, but {MANIFEST} lists it")
        if path.stat().st_size != entry.size:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes, but {MANIFEST} says {entry.size}")
    for path in sorted(directory.glob("*.safetensors")):
        if path.name not in manifest.files:
            raise CheckpointError(f"{path} is not in {MANIFEST}; remove it, or write the directory again")
    for name, found in digest_files(directory, list(manifest.files)).items():
        if found != manifest.files[name]:
            raise CheckpointError(
                f"{directory / name} has the digest {found.digest[:16]}..., but {MANIFEST} says "
                f"{manifest.files[name].digest[:16]}...: it was changed or damaged after it was written"
            )
    return len(manifest.files)
