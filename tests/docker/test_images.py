"""The Dockerfile: hadolint, and what each image is and is not."""

from __future__ import annotations

import fnmatch
import re
import sys

import pytest

from tests.conftest import ROOT
from tests.docker.files import (
    DOCKER,
    SETTINGS,
    command,
    environment,
    health_command,
    last,
    lineage,
    run_tool,
    stages,
    tool,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TARGETS = ("worker", "api", "gpu")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_hadolint_finds_nothing() -> None:
    done = run_tool(tool("hadolint"), "docker/Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


def test_shellcheck_finds_nothing() -> None:
    done = run_tool(tool("shellcheck"), "docker/smoke.sh", "tests/install-servers.sh")
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("target", TARGETS)
def test_the_base_is_pinned_by_version_and_digest(target: str) -> None:
    base = lineage(target)[-1].base
    assert re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+-[\w.-]+@sha256:[0-9a-f]{64}", base)


@pytest.mark.parametrize("target", TARGETS)
def test_the_result_has_no_compiler(target: str) -> None:
    """What is installed comes from a builder, except Ubuntu's Python, and builders take wheels only."""
    installing = [run for stage in lineage(target) for run in stage.of("RUN") if "install " in run and "apt" in run]
    packages = {word for run in installing for word in run.partition("install ")[2].split("&&")[0].split()}
    assert {name for name in packages if not name.startswith("-")} <= {"python3"}
    assert not [run for stage in lineage(target) for run in stage.of("RUN") if "pip" in run]
    (copy,) = [text for stage in lineage(target) for text in stage.of("COPY")]
    builder = re.match(r"--from=(\S+) /opt/ldot /opt/ldot$", copy)
    assert builder is not None
    assert "PIP_ONLY_BINARY=:all:" in stages()[builder[1]].of("ENV")[0]


def test_torch_without_cuda_is_installed_first() -> None:
    """Later installations find torch and do not replace it by PyPI's, which needs gigabytes of CUDA packages."""
    cpu, gpu = ([run for run in stages()[f"build-{kind}"].of("RUN") if "pip " in run] for kind in ("cpu", "gpu"))
    assert "--index-url https://download.pytorch.org/whl/cpu" in next(run for run in cpu if "install" in run)
    assert "torch==" in next(run for run in cpu if "install" in run)
    assert not [run for run in gpu if "index-url" in run]


def test_the_version_of_torch_is_one_that_the_project_takes() -> None:
    from packaging.requirements import Requirement

    (torch,) = [need for need in map(Requirement, PROJECT["dependencies"]) if need.name == "torch"]
    versions = [text.partition("=")[2] for kind in ("cpu", "gpu") for text in stages()[f"build-{kind}"].of("ARG")]
    assert len(versions) == 2
    assert all(torch.specifier.contains(version) for version in versions)


@pytest.mark.parametrize("target", TARGETS)
def test_an_ordinary_user_with_a_read_only_root(target: str) -> None:
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last(target, "USER"))  # a number: Kubernetes checks that it is not 0
    variables = environment(target)
    assert variables["PYTHONDONTWRITEBYTECODE"] == "1"
    folders = [variables["HOME"], variables["HF_HOME"], variables["XDG_CACHE_HOME"], last(target, "WORKDIR")]
    assert {f"/{folder.split('/')[1]}" for folder in folders} == {"/data", "/cache"}


@pytest.mark.parametrize("target", TARGETS)
def test_commands_have_the_exec_form_and_a_health_check(target: str) -> None:
    """The shell form would send SIGTERM to a shell, and a chunk would not be finished."""
    programs = [name.split(":")[0].split(" ")[0] for name in PROJECT["scripts"]] + ["celery"]
    assert command(target)[0] in programs
    assert health_command(target)


@pytest.mark.parametrize("target", TARGETS)
def test_variables_are_settings(target: str) -> None:
    assert {name for name in environment(target) if name.startswith("LDOT_")} <= SETTINGS


def test_the_gpu_image_has_the_environment_of_the_others() -> None:
    """Its base is another one, so the Dockerfile has these lines twice."""
    assert environment("gpu") == {**environment("api"), "LDOT_DEVICE": "cuda"}
    users = [[run for run in stages()[name].of("RUN") if "useradd" in run] for name in ("cpu", "gpu")]
    assert users[0] == users[1] != []
    assert health_command("gpu") == health_command("worker")


def test_passwords_are_not_committed() -> None:
    assert "/docker/.env" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_extras_exist(kind: str) -> None:
    (install,) = [run for run in stages()[f"build-{kind}"].of("RUN") if '".[' in run]
    extras = re.search(r'"\.\[([\w,-]+)\]"', install)
    assert extras is not None
    assert set(extras[1].split(",")) <= PROJECT["optional-dependencies"].keys()


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_what_the_package_is_built_of_is_copied(kind: str) -> None:
    copied = {word.rstrip("/") for text in stages()[f"build-{kind}"].of("COPY") for word in text.split()[:-1]}
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], *build["packages"]} == copied


def test_what_is_copied_is_sent_to_the_builder_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    sent = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    copied = {
        word for kind in ("cpu", "gpu") for text in stages()[f"build-{kind}"].of("COPY") for word in text.split()[:-1]
    }
    assert sent == copied
    assert all((ROOT / name).exists() for name in sent)
    assert not any(fnmatch.fnmatch(name, rule) for name in sent for rule in (".env*", "docker*", ".git*", "ldot-data*"))


def test_no_secret_is_in_a_file() -> None:
    """What looks like a password, a token or a key has no value of its own."""
    assignment = re.compile(
        r"^[ \t-]*([A-Z_]*(?:PASSWORD|TOKEN|SECRET|SECRET_ACCESS_KEY))[ \t]*[:=][ \t]*(.*)$", re.MULTILINE
    )
    found = []
    for file in sorted(DOCKER.rglob("*")):
        if file.is_file() and file.name != ".env":
            found += [(file.name, name, value) for name, value in assignment.findall(file.read_text())]
    assert len(found) > 10
    for file, name, value in found:
        assert value == "" or value.startswith(("${", "$(password)", "root:${", "$token")), (
            f"{file}: {name} has a value"
        )
