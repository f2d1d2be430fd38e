"""Enough of a Dockerfile reader for the project's own files: stages, and what each says it copies, runs and starts."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Stage:
    """One FROM and what follows; ``copies`` holds the sources taken from the build context."""

    image: str
    env: dict[str, str] = field(default_factory=dict)
    copies: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)
    entrypoint: list[str] = field(default_factory=list)
    cmd: list[str] = field(default_factory=list)
    user: str = "root"

    @property
    def command(self) -> list[str]:
        return self.entrypoint + self.cmd


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, arguments), comments dropped and continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())]


def parse(path: Path) -> list[Stage]:
    """The stages of a Dockerfile in order; the last is the image. Build arguments in FROM take their defaults."""
    args: dict[str, str] = {}
    stages: list[Stage] = []
    for name, rest in instructions(path.read_text("utf-8")):
        if name == "FROM":
            image = re.sub(r"\$\{(\w+)\}", lambda match: args[match.group(1)], rest.split()[0])
            stages.append(Stage(image))
        elif name == "ARG":
            key, _, value = rest.partition("=")
            args[key] = value.strip('"')
        elif name == "ENV":
            for name, _, value in (part.partition("=") for part in shlex.split(rest)):
                stages[-1].env[name] = value
        elif name == "COPY" and not rest.startswith("--from="):
            stages[-1].copies += rest.split()[:-1]
        elif name == "RUN":
            stages[-1].runs.append(rest)
        elif name == "HEALTHCHECK":
            stages[-1].healthcheck = json.loads(rest[rest.index("CMD") + 3 :])
        elif name in ("ENTRYPOINT", "CMD"):
            setattr(stages[-1], name.lower(), json.loads(rest))
        elif name == "USER":
            stages[-1].user = rest
    return stages
