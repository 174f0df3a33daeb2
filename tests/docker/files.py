"""The files of ``docker/``, and the tools that check them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ldot_milvus.settings import Settings
from ldot_milvus.variables import ENV_FILE
from tests.conftest import ROOT

DOCKER = ROOT / "docker"
SETTINGS = {f"LDOT_{name.upper()}" for name in Settings.model_fields} | {ENV_FILE}


def tool(name: str) -> str:
    """Return the path of a program of the extra ``dev`` or of the machine; skip the test where there is none."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: pip install 'ldot-milvus[dev]', on Linux with x86-64")
    return found


@dataclass
class Stage:
    """A stage of the Dockerfile.

    Attributes:
        name: its name.
        base: the stage or the image that it begins with.
        instructions: instruction and arguments, continued lines joined.
    """

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def of(self, instruction: str) -> list[str]:
        return [arguments for name, arguments in self.instructions if name == instruction]


def stages() -> dict[str, Stage]:
    """Read the stages of the Dockerfile."""
    text = re.sub(r"^#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, Stage] = {}
    stage = None
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, arguments = line.split(None, 1)
        if instruction == "FROM":
            base, name = arguments.split(" AS ")
            stage = found[name] = Stage(name, base)
        else:
            assert stage is not None, line
            stage.instructions.append((instruction, arguments.strip()))
    return found


def lineage(name: str) -> list[Stage]:
    """Return a stage and those that it begins with; the last one begins with an image."""
    known, found = stages(), []
    while name in known:
        found.append(known[name])
        name = known[name].base
    return found


def environment(target: str) -> dict[str, str]:
    """Return the variables that the image of a target sets."""
    pairs = [shlex.split(text) for stage in reversed(lineage(target)) for text in stage.of("ENV")]
    return dict(pair.split("=", 1) for line in pairs for pair in line)


def last(target: str, instruction: str) -> str:
    """Return the last instruction of a kind that applies to a target."""
    return next(stage.of(instruction)[-1] for stage in lineage(target) if stage.of(instruction))


def command(target: str) -> list[str]:
    return list(json.loads(last(target, "CMD")))


def health_command(target: str) -> list[str]:
    return list(json.loads(last(target, "HEALTHCHECK").partition("CMD")[2]))


def run_tool(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    options = {"cwd": ROOT, **options}
    return subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=60, **options)  # type: ignore[call-overload]
