"""The commands of README, CONTRIBUTING and docs: run as they are printed, or else compared with what they call."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from ldot_milvus import open_store
from ldot_milvus.cli import main
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.settings import Settings, variable_of
from ldot_milvus.sources import expand
from tests.conftest import ROOT
from tests.docker.files import run_tool
from tests.documentation import PAGES, SERVICE, Command, commands, served, write_photos
from tests.unit.sources.test_sources import make_tar

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WITH_COMMANDS = [page for page in PAGES if commands(page)]
SETTINGS = {variable_of(name) for name in Settings.model_fields} | {"LDOT_ENV_FILE"}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

NOT_RUN = {
    r"celery .*\b(worker|metrics|flower)\b|ldot (serve|mcp)": "a server, which tests of its own start",
    r"ldot train|ldot_milvus train": "takes minutes to hours; tests/unit/training runs each kind of it",
    r"ldot convert|my-model|my-edje|my-run|my-reranker": "needs a checkpoint of others",
    r"ldot regions": "needs the weights of a detector",
    r"celery .*(\.\.\.|2026)": "a pattern, or the name of a run",
    r"--min-probability": "needs a model with a calibration; tests/integration/search runs it",
}
"""Commands of ours that are not run, and why: their options are compared with those that there are."""

INSTEAD = {"http://localhost:19530": "faiss:./elsewhere", "$LDOT_STORE": "faiss:./elsewhere"}
"""What stands in for a Milvus server."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> Path:
    """A home with photos, a collection of them, and what else the commands name."""
    found = tmp_path_factory.mktemp("documented")
    write_photos(found)
    photo = (found / "a.jpg").read_bytes()
    make_tar(found / "dev.tar", {"0.jpg": photo, "0.json": json.dumps({"captions": ["a dog", "a cat"]}).encode()})
    (found / "new.jsonl").write_text('{"file": "0.jpg", "caption": "two dogs", "album": "2019"}\n')
    with open_store(f"faiss:{found / 'ldot-data'}", "images") as store:
        Ingestor(store, tiny_model, device="cpu").ingest(list(expand([str(found / "photos"), str(found / "a.jpg")])))
    return found


@pytest.fixture(scope="module")
def service(folder: Path, tiny_model: str) -> Iterator[str]:
    pytest.importorskip("ldot_milvus.serve.app", reason="pip install 'ldot-milvus[serve]'")
    with served(folder, tiny_model) as address:
        yield address


@pytest.fixture
def sandbox(folder: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    for name, value in {"HOME": str(folder), "LDOT_MODEL": tiny_model, "LDOT_DEVICE": "cpu"}.items():
        monkeypatch.setenv(name, value)
    return folder


def celery() -> Any:
    from celery.bin.celery import celery as command_line

    return command_line


def is_run(command: Command) -> bool:
    text = " ".join([f"{name}={value}" for name, value in command.variables.items()] + command.words)
    if command.words[0] == "curl":
        return SERVICE.search(text) is not None
    return command.words[0] in ("ldot", "celery") and not any(re.search(pattern, text) for pattern in NOT_RUN)


def ours(command: Command) -> None:
    """Run ``ldot`` or ``celery`` in this process."""
    words = [INSTEAD.get(word, os.path.expanduser(word)) for word in command.words[1:]]
    program = main if command.words[0] == "ldot" else celery()
    done = CliRunner().invoke(program, words, catch_exceptions=False)
    assert done.exit_code == 0, f"{command.text}: {done.output}"


def options_of(command: Command) -> None:
    compare_options(command.words)


def compare_options(words: list[str]) -> None:
    """Check that a command has the subcommands and options that it is called with."""
    if "ldot_milvus" in words:
        words = ["ldot", *words[words.index("ldot_milvus") + 1 :]]
    group: click.Command = main if words[0] == "ldot" else celery()
    known: set[str] = set()
    for word in words[1:]:
        known |= {option for parameter in group.params for option in [*parameter.opts, *parameter.secondary_opts]}
        if isinstance(group, click.Group) and (found := group.commands.get(word)) is not None:
            group = found
    known |= {option for parameter in group.params for option in [*parameter.opts, *parameter.secondary_opts]}
    assert not isinstance(group, click.Group), f"{words}: no such command"
    if group.name == "flower":  # its options are those of tornado
        from tornado.options import options

        known |= {f"--{name.replace('_', '-')}" for name in options.as_dict()}
    given = {word.partition("=")[0] for word in words if re.match(r"--?[A-Za-z]", word)}
    assert given <= known, f"{words}: no option {given - known}"


def export(command: Command) -> None:
    names = {word.partition("=")[0] for word in command.words[1:]}
    assert {name for name in names if name.startswith("LDOT_")} <= SETTINGS


def make(command: Command) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(command.words[1:]) <= set(targets)


def pip(command: Command) -> None:
    extras = {extra for word in command.words for extra in re.findall(r"ldot-milvus\[([\w,-]+)\]", word)}
    assert {name for extra in extras for name in extra.split(",")} <= EXTRAS.keys()


def compose(command: Command) -> None:
    """The files exist, and so do the subcommand, its options and the containers."""
    files = [word for flag, word in zip(command.words, command.words[1:], strict=False) if flag == "-f"]
    assert files
    assert all((ROOT / file).is_file() for file in files)
    import yaml

    services = {name for file in files for name in yaml.safe_load((ROOT / file).read_text())["services"]}
    rest = command.words[command.words.index(files[-1]) + 1 :]
    while rest[0].startswith("-"):
        rest = rest[2:]
    assert rest[0] in {"up", "down", "exec", "logs", "build", "ps"}
    if rest[0] == "exec":
        assert rest[1] in services
        compare_options(rest[2:])
    else:
        assert {word for word in rest[1:] if not word.startswith("-")} <= services


def files_exist(command: Command) -> None:
    paths = [word for word in command.words[1:] if re.match(r"(docker|tests|examples|docs)/", word)]
    assert all((ROOT / path).exists() or path == "docker/.env" for path in paths), command.text


def kubectl(command: Command) -> None:
    files_exist(command)
    if "--" in command.words:
        compare_options(command.words[command.words.index("--") + 1 :])


def example(command: Command) -> None:
    """tests/integration/test_services.py starts them."""
    module = command.words[-1].partition(":")[0]
    assert (ROOT / "examples" / f"{module}.py").is_file()
    assert module.split("_")[0] in (ROOT / "tests" / "integration" / "test_services.py").read_text()


def curl(command: Command) -> None:
    """The path is one of the service, or of an example."""
    (path,) = re.findall(r"(?:localhost|127\.0\.0\.1):\d+(/[\w/]*)", command.text)
    folders = [ROOT / "ldot_milvus" / "serve", ROOT / "examples"]
    assert any(f'"{path}"' in source.read_text() for folder in folders for source in folder.glob("*.py")), path


def asked(command: Command) -> None:
    """Run ``curl``, which must get an answer."""
    done = run_tool("curl", "--fail-with-body", "--max-time", "60", *command.words[1:], cwd=Path.cwd())
    assert done.returncode == 0, f"{command.text}: {done.stdout}{done.stderr}"
    assert json.loads(done.stdout)["hits"]


def release(command: Command) -> None:
    """What a release needs a clone, a tag or a new environment for; only its own commands are compared."""
    program = Path(command.words[0]).name
    if program in ("ldot", "celery"):
        compare_options([program, *command.words[1:]])


KINDS: dict[str, Callable[[Command], None]] = {
    r"ldot|celery": ours,
    r"export": export,
    r"make": make,
    r"pip": pip,
    r"docker": compose,
    r"kubectl": kubectl,
    r"cp|(\.venv/bin/)?pytest": files_exist,
    r"uvicorn|gunicorn": example,
    r"accelerate|torchrun": lambda command: compare_options([word for word in after_module(command) if word != "..."]),
    r"curl": curl,
    r"git|cd|python3|(build|try)-env/bin/\w+": release,
}
"""How a command is tested, by its program. Each must match one pattern."""


def after_module(command: Command) -> list[str]:
    return command.words[command.words.index("ldot_milvus") :]


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_the_commands_have_what_they_name(page: str) -> None:
    for command in commands(page):
        assert {name for name in command.variables if name.startswith("LDOT_")} <= SETTINGS, command.text
        (kind,) = [check for pattern, check in KINDS.items() if re.fullmatch(pattern, command.words[0])]
        (options_of if kind is ours else kind)(command)


@pytest.mark.parametrize("page", [page for page in WITH_COMMANDS if any(map(is_run, commands(page)))])
def test_the_commands_run(page: str, sandbox: Path, request: pytest.FixtureRequest) -> None:
    for command in filter(is_run, commands(page)):
        words = command.words
        if SERVICE.search(command.text):
            address = request.getfixturevalue("service")
            words = [SERVICE.sub(address, word) for word in words]
        (asked if words[0] == "curl" else ours)(Command(command.variables, words))


@pytest.mark.parametrize(
    "text",
    ["ldot serch x", "ldot train --no-such-option x", "celery -A workers worker --pols solo", "ldot mcp --htp 1"],
)
def test_a_wrong_command_is_noticed(text: str) -> None:
    with pytest.raises(AssertionError):
        compare_options(text.split())


def test_kinds_can_fail() -> None:
    for kind, text in {
        export: "export LDOT_STOR=x", make: "make upp", pip: "pip install ldot-milvus[nothing]",
        compose: "docker compose -f docker/compose.yaml exec wrker ldot doctor",
        files_exist: "pytest tests/no-such-file", curl: "curl http://127.0.0.1:8080/v1/serch",
    }.items():  # fmt: skip
        with pytest.raises(AssertionError):
            kind(Command({}, text.split()))


def test_docker_compose_has_the_options() -> None:
    """The options of the subcommands, by its own help."""
    from tests.docker.files import tool

    docker_compose = tool("docker-compose")
    for command in [command for page in WITH_COMMANDS for command in commands(page) if command.words[0] == "docker"]:
        (subcommand,) = [word for word in command.words if word in {"up", "down", "exec", "logs"}]
        known = run_tool(docker_compose, subcommand, "--help").stdout + run_tool(docker_compose, "--help").stdout
        end = command.words.index(subcommand) + (1 if subcommand == "exec" else len(command.words))
        for option in [word for word in command.words[:end] if word.startswith("--")]:
            assert option in known, command.text
