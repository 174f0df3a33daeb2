"""The compose files, as Docker Compose reads them; without it, what their text alone tells."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from ldot_milvus.settings import Settings
from ldot_milvus.stores.milvus.address import ServerAddress
from ldot_milvus.stores.registry import parse_address
from ldot_milvus.workers.application import make_app
from tests.conftest import ROOT
from tests.docker.files import DOCKER, SETTINGS, command, health_command, run_tool, stages, tool

CPU = ("compose.yaml",)
GPU = ("compose.yaml", "compose.gpu.yaml")
OURS = {"api", "worker", "worker-1", "flower"}
EXAMPLE = (DOCKER / ".env.example").read_text()
PASSWORDS = re.findall(r"^([A-Z_]+)=$", EXAMPLE, re.MULTILINE)
OPTIONAL = {"FLOWER_PASSWORD"}


def compose(tmp_path: Path, files: tuple[str, ...], *profiles: str, **variables: str) -> Any:
    """Return what ``docker compose config`` makes of the files, or what it complains about."""
    docker_compose = tool("docker-compose")
    settings = tmp_path / "env"
    settings.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
    options = [option for file in files for option in ("-f", f"docker/{file}")]
    options += [option for profile in profiles for option in ("--profile", profile)]
    env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = run_tool(docker_compose, *options, "--env-file", str(settings), "config", "--format", "json", env=env)
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr


@pytest.fixture
def passwords() -> dict[str, str]:
    return {name: f"{number}" * 12 for number, name in enumerate(PASSWORDS, 1)}


@pytest.fixture(params=[CPU, GPU], ids=["cpu", "gpu"])
def services(request: pytest.FixtureRequest, tmp_path: Path, passwords: dict[str, str]) -> dict[str, Any]:
    found = compose(tmp_path, request.param, "flower", "two-cards", **passwords)
    assert isinstance(found, dict), found
    return dict(found["services"])


def test_all_parts_are_there(services: dict[str, Any]) -> None:
    assert services.keys() - {"worker-1"} == {
        "api", "worker", "flower", "redis", "milvus", "etcd", "minio", "buckets"
    }  # fmt: skip


def test_flower_and_the_second_card_are_asked_for(tmp_path: Path, passwords: dict[str, str]) -> None:
    found = compose(tmp_path, GPU, **passwords)
    assert found["services"].keys().isdisjoint({"flower", "worker-1"})


@pytest.mark.parametrize("missing", sorted(set(PASSWORDS) - OPTIONAL))
def test_a_missing_password_is_refused(missing: str, tmp_path: Path, passwords: dict[str, str]) -> None:
    complaint = compose(tmp_path, CPU, **{**passwords, missing: ""})
    assert f"required variable {missing} is missing a value: set it in docker/.env" in complaint


def test_flower_without_a_password_does_not_start(services: dict[str, Any]) -> None:
    script = services["flower"]["command"][-1].replace("$$", "$")  # as config prints what a shell gets
    done = run_tool("sh", "-ec", script, env={"PATH": os.environ["PATH"], "FLOWER_PASSWORD": ""})
    assert done.returncode != 0
    assert "FLOWER_PASSWORD: set it in docker/.env" in done.stderr


def test_only_the_api_is_published_and_only_on_this_machine(tmp_path: Path, passwords: dict[str, str]) -> None:
    for files in (CPU, GPU):
        found = compose(tmp_path, files, **passwords)["services"]
        ports = [(name, port["host_ip"]) for name, service in found.items() for port in service.get("ports", [])]
        assert ports == [("api", "127.0.0.1")]
    flower = compose(tmp_path, CPU, "flower", **passwords)["services"]["flower"]
    assert {port["host_ip"] for port in flower["ports"]} == {"127.0.0.1"}


def test_every_server_has_a_health_check_and_starts_again(services: dict[str, Any]) -> None:
    """Our images have a health check of their own, which that of the worker would not be for Flower."""
    images = {f"ldot-{name}" for name in ("api", "worker", "worker-gpu")}
    for name, service in services.items():
        if name == "buckets":
            assert service["restart"].startswith("on-failure")
            continue
        assert service["restart"] == "unless-stopped", name
        if "healthcheck" in service:
            assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL"), name
        else:
            assert service["image"] in images, name
            assert name != "flower"
        assert "no-new-privileges:true" in service["security_opt"], name


def test_our_containers_can_write_to_volumes_only(services: dict[str, Any]) -> None:
    for name in OURS & services.keys():
        service = services[name]
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"]
        assert "privileged" not in service
        mounts = {volume["target"]: volume for volume in service["volumes"]}
        assert mounts.keys() == {"/cache", "/data", "/photos"}
        assert mounts["/photos"]["read_only"]


def test_parts_wait_until_those_they_need_answer(services: dict[str, Any]) -> None:
    for service in services.values():
        for needed, how in service.get("depends_on", {}).items():
            expected = "service_completed_successfully" if needed == "buckets" else "service_healthy"
            assert how["condition"] == expected
    for name in OURS & services.keys() - {"flower"}:
        assert services[name]["depends_on"].keys() == {"redis", "milvus", "buckets"}


@pytest.mark.parametrize("seconds", ["", "90", "3600"])
def test_a_worker_that_is_stopped_can_finish_its_chunk(
    seconds: str, tmp_path: Path, passwords: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = compose(tmp_path, GPU, "two-cards", **passwords, LDOT_VISIBILITY_TIMEOUT=seconds)["services"]
    for name in ("worker", "worker-1"):
        service = found[name]
        monkeypatch.setenv("LDOT_VISIBILITY_TIMEOUT", service["environment"]["LDOT_VISIBILITY_TIMEOUT"])
        assert in_seconds(service["stop_grace_period"]) >= make_app(Settings()).conf.task_time_limit


def in_seconds(duration: str) -> int:
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", duration))


def test_the_settings_of_our_containers_are_valid(
    services: dict[str, Any], passwords: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in OURS & services.keys():
        variables = services[name]["environment"]
        assert {variable for variable in variables if variable.startswith("LDOT_")} <= SETTINGS
        with monkeypatch.context() as patch:
            for variable, value in variables.items():
                patch.setenv(variable, value)
            settings = Settings()
        assert isinstance(parse_address(settings.store), ServerAddress)
        assert settings.token == f"root:{passwords['MILVUS_PASSWORD']}"
        assert settings.broker == f"redis://:{passwords['REDIS_PASSWORD']}@redis:6379/0"
        hosts = {settings.store.split("/")[2].split(":")[0], variables["AWS_ENDPOINT_URL"].split("/")[2].split(":")[0]}
        assert hosts | {"redis"} <= services.keys()


@pytest.mark.parametrize("more", ["", "photos.example.com"])
def test_the_health_check_may_ask_the_service(more: str, tmp_path: Path, passwords: dict[str, str]) -> None:
    api = compose(tmp_path, CPU, **passwords, LDOT_SERVE_HOSTS=more)["services"]["api"]
    hosts = api["environment"]["LDOT_SERVE_HOSTS"].split(",")
    assert re.findall(r"http://([^:/]+)", " ".join(health_command("api"))) == ["127.0.0.1"]
    assert "127.0.0.1" in hosts
    assert "" not in hosts
    assert (more in hosts) == bool(more)


def test_our_commands_are_those_of_the_images(services: dict[str, Any]) -> None:
    for name in {"worker", "worker-1"} & services.keys():
        target = services[name]["build"]["target"]
        assert services[name]["command"] == command(target)
        assert target in stages()
        assert Path(services[name]["build"]["context"]) == ROOT


def test_each_card_has_one_worker_and_milvus_has_the_same_version(tmp_path: Path, passwords: dict[str, str]) -> None:
    cards = {"WORKER_GPU": "2", "WORKER_1_GPU": "3", "MILVUS_GPU": "1"}
    found = compose(tmp_path, GPU, "two-cards", **passwords, **cards)["services"]
    on = {
        name: device["device_ids"]
        for name, service in found.items()
        for device in service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
    }
    assert on == {"worker": ["2"], "worker-1": ["3"], "milvus": ["1"]}
    cpu = compose(tmp_path, CPU, **passwords)["services"]["milvus"]["image"]
    assert found["milvus"]["image"] == f"{cpu}-gpu"
    assert "http://localhost:9091/healthz" in found["milvus"]["healthcheck"]["test"]


def test_images_of_others_have_a_version(services: dict[str, Any]) -> None:
    for name, service in services.items():
        if not service["image"].startswith("ldot-"):
            assert re.search(r":(v?\d+\.\d+\.\d+|RELEASE\.\d{4})", service["image"]), name


def test_the_example_lists_every_variable() -> None:
    """Runs without Docker Compose."""
    text = "".join((DOCKER / file).read_text() for file in GPU)
    used = set(re.findall(r"(?<!\$)\$\{([A-Z0-9_]+)", text))
    listed = set(re.findall(r"^#?([A-Z0-9_]+)=", EXAMPLE, re.MULTILINE))
    assert used == listed
    required = set(re.findall(r"(?<!\$)\$\{([A-Z0-9_]+):\?", text))
    assert required == set(PASSWORDS) - OPTIONAL


def test_the_defaults_of_the_example_are_those_of_the_files() -> None:
    text = "".join((DOCKER / file).read_text() for file in GPU)
    defaults = dict(re.findall(r"\$\{([A-Z0-9_]+):-([^}]*)\}", text))
    shown = dict(re.findall(r"^#([A-Z0-9_]+)=(.*)$", EXAMPLE, re.MULTILINE))
    free = {"PHOTOS", "LDOT_SERVE_HOSTS", "LDOT_SERVE_ORIGINS"}  # examples, since their default is nothing or a folder
    assert {name: shown[name] for name in shown.keys() - free} == {name: defaults[name] for name in shown.keys() - free}
    assert (DOCKER / defaults["PHOTOS"]).resolve() == ROOT / "examples" / "photos"
