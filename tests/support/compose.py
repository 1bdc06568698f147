"""What docker-compose.yml and the Dockerfiles say."""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, field_validator

ROOT = Path(__file__).parents[2]
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?P<sign>:[-?])?(?P<text>[^}]*)\}")


class Build(BaseModel):
    """How an image is made."""

    context: Path
    dockerfile: str


class HealthCheck(BaseModel):
    """A command that ends with 0 in a service that is well."""

    test: tuple[str, ...]
    interval: str
    timeout: str
    retries: int


class Network(BaseModel):
    """How a service takes part in a network."""

    aliases: tuple[str, ...] = ()


class Service(BaseModel):
    """A service, as far as we check or run it."""

    image: str
    user: str
    healthcheck: HealthCheck
    deploy: dict[str, Any]
    networks: dict[str, Network]
    build: Build | None = None
    command: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    volumes: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()
    depends_on: dict[str, Any] = {}
    stop_grace_period: str = "10s"
    read_only: bool = False
    init: bool = False
    cap_drop: tuple[str, ...] = ()
    security_opt: tuple[str, ...] = ()

    @field_validator("networks", mode="before")
    @classmethod
    def _by_name(cls, networks: Any) -> Any:
        return {name: {} for name in networks} if isinstance(networks, list) else networks

    @property
    def limits(self) -> dict[str, str]:
        """The most it may use."""
        return self.deploy["resources"]["limits"]

    @property
    def mounts(self) -> dict[str, str]:
        """Where a volume or a path of the host is mounted, by that path in the container."""
        return {target: source for source, target in (volume.split(":")[:2] for volume in self.volumes)}


class Compose(BaseModel):
    """The whole file."""

    services: dict[str, Service]
    networks: dict[str, dict[str, Any]]
    volumes: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> "Compose":
        """Read the file with these variables set.

        Raises:
            KeyError: one that has to be set is not.
        """

        def value(match: re.Match[str]) -> str:
            set_to = environment.get(match["name"], "")
            return set_to or (match["text"] if match["sign"] == ":-" else environment[match["name"]])

        return cls.model_validate(yaml.safe_load(VARIABLE.sub(value, compose_text())))


def compose_text() -> str:
    """The file, without its comments."""
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))


@dataclass(frozen=True)
class Dockerfile:
    """The instructions of a Dockerfile, in order."""

    instructions: tuple[tuple[str, str], ...]

    @classmethod
    def read(cls, path: Path) -> "Dockerfile":
        """Read a file."""
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        joined = "\n".join(lines).replace("\\\n", " ")
        pairs = (line.split(maxsplit=1) for line in joined.splitlines() if line.strip())
        return cls(tuple((name, rest) for name, rest in pairs))

    def all(self, name: str) -> list[str]:
        """What follows each instruction of this name."""
        return [rest for instruction, rest in self.instructions if instruction == name]

    @property
    def last_stage(self) -> "Dockerfile":
        """What follows the last FROM."""
        start = max(i for i, (name, _) in enumerate(self.instructions) if name == "FROM")
        return Dockerfile(self.instructions[start:])

    @property
    def environment(self) -> dict[str, str]:
        """The variables that the image sets."""
        words = (word.split("=", 1) for rest in self.last_stage.all("ENV") for word in shlex.split(rest))
        return {name: value for name, value in words}

    @property
    def entrypoint(self) -> tuple[str, ...]:
        """What a service's command is given to."""
        return tuple(word for rest in self.last_stage.all("ENTRYPOINT")[-1:] for word in json.loads(rest))

    @property
    def sources(self) -> list[str]:
        """What is copied from the context."""
        copies = [shlex.split(rest) for rest in self.all("COPY")]
        return [source for words in copies if not words[0].startswith("--from") for source in words[:-1]]


def is_in_context(path: str) -> bool:
    """Whether .dockerignore lets a file or folder, given by its path from the root, through."""
    taken = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!")
        names = [str(p) for p in (Path(path), *Path(path).parents) if str(p) != "."]
        if any(_matches(pattern, name) for name in names):
            taken = line.startswith("!")
    return taken


def _matches(pattern: str, path: str) -> bool:
    """As Docker does: from the root, with ``**/`` for any folders."""
    expression = re.escape(pattern).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
    return re.fullmatch(expression, path) is not None
