"""``make up`` and ``make down``: all parts of a deployment on this machine, and nothing of them afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PHOTOS, ROOT
from tests.servers.ports import free_ports, preferred_port
from tests.servers.processes import start
from tests.servers.stack import Stack

pytestmark = pytest.mark.servers


def development(action: str, folder: Path) -> list[str]:
    """Run the command of ``make up`` or ``make down``, and return the lines that it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.servers", action, "--folder", str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "dev"
    Stack(tmp_path / "dev").down(lambda _: None)


def processes_of(folder: Path) -> list[str]:
    """Return the commands of all processes whose arguments or variables name a folder, such as children of children."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            texts = [(process / name).read_bytes() for name in ("cmdline", "environ")]
        except OSError:
            continue
        if any(os.fsencode(folder) in text for text in texts):
            found.append(texts[0].replace(b"\0", b" ").decode(errors="replace"))
    return found


def upload_through_the_worker(service: str, photo: Path) -> None:
    """The service gives an uploaded photo to the worker, which writes it to Milvus, where the service finds it."""
    import httpx

    with httpx.Client(base_url=service, timeout=60) as client:
        begun = client.post("/v1/ingest", files={"files": (photo.name, photo.read_bytes())}).raise_for_status()
        deadline = time.monotonic() + 60
        while not (state := client.get(f"/v1/runs/{begun.json()['run']}").raise_for_status().json())["complete"]:
            assert time.monotonic() < deadline, state
            time.sleep(0.2)
        assert state["sums"]["added"] == 1, state
        found = client.post("/v1/search", json={"text": "two people riding horses on the beach", "k": 1})
        (hit,) = found.raise_for_status().json()["hits"]
        assert hit["id"] == hashlib.sha256(photo.read_bytes()).hexdigest()
        assert hit["rerank_score"] is not None
        picture = client.get(f"/v1/rows/{hit['id']}/thumbnail").raise_for_status()
        assert picture.content.startswith(b"\xff\xd8")


@pytest.mark.slow
def test_everything_starts_works_and_stops(folder: Path, run) -> None:
    pytest.importorskip("ldot_milvus.serve.app", reason="pip install 'ldot-milvus[serve]'")
    lines = development("up", folder)
    assert [line.split()[0] for line in lines[:4]] == ["redis", "milvus", "worker", "service"]
    before = Stack(folder).processes()
    assert before.keys() == {"redis", "milvus", "worker", "service"}
    env = {"LDOT_ENV_FILE": lines[-1].partition("LDOT_ENV_FILE=")[2]}
    done = run("celery", "-A", "workers", "enqueue", str(PHOTOS / "000000568290.jpg"), env=env)
    assert (done.returncode, "1 added" in done.stdout) == (0, True), done.stderr
    done = run("ldot", "search", "a long red bus", "--json", env=env)
    assert "000000568290.jpg" in done.stdout, done.stderr
    service = lines[3].split()[1]
    query = urllib.request.Request(f"{service}/v1/search", json.dumps({"text": "a long red bus"}).encode(),
                                   {"Content-Type": "application/json"})  # fmt: skip
    with urllib.request.urlopen(query, timeout=60) as answer:
        assert json.load(answer)["hits"][0]["source"].endswith("000000568290.jpg")

    upload_through_the_worker(service, PHOTOS / "000000214753.jpg")

    # Again: what runs goes on, and a worker that was killed is replaced together with its children.
    os.kill(before["worker"][0], signal.SIGKILL)
    again = development("up", folder)
    after = Stack(folder).processes()
    assert [line.endswith("runs already") for line in again[:4]] == [True, True, False, True]
    assert {name: before[name] == after[name] for name in before} == {
        "redis": True, "milvus": True, "worker": False, "service": True
    }  # fmt: skip
    assert not set(before["worker"]) & set(after["worker"])

    assert development("down", folder)[:-1] == [
        f"{name:8} stopped" for name in ("service", "worker", "milvus", "redis")
    ]
    assert processes_of(folder) == []
    assert development("down", folder)[0] == "service  does not run"


def test_a_part_that_does_not_start_stops_the_others(folder: Path) -> None:
    """Its log is shown. Here Redis cannot read its file."""
    (folder / "redis").mkdir(parents=True)
    (folder / "redis" / "appendonly.aof").write_text("no commands\n")
    done = subprocess.run(
        [sys.executable, "-m", "tests.servers", "up", "--folder", str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "redis ended; the end of" in done.stderr
    assert "Bad file format" in done.stderr
    assert processes_of(folder) == []


def test_children_end_with_their_parent_or_after_it(tmp_path: Path) -> None:
    script = "sleep 1000 & trap '' TERM; echo begun; while :; do sleep 0.1; done"
    for kill_first in (False, True):
        process = start(["sh", "-c", script], tmp_path / "log", dict(os.environ), tmp_path)
        while "begun" not in (tmp_path / "log").read_text():
            assert process.alive()
        assert len(process.members()) >= 2
        if kill_first:
            os.kill(process.pid, signal.SIGKILL)
            os.waitpid(process.pid, 0)
            assert not process.alive()
            assert process.members()
        process.stop(signal.SIGTERM, 0.3)
        assert process.members() == []


def test_ports_are_free_and_not_those_of_outgoing_connections() -> None:
    ports = free_ports(50)
    assert len(set(ports)) == 50
    assert max(ports) < 32768
    with socket.create_server(("127.0.0.1", ports[0])):
        assert preferred_port(ports[0]) != ports[0]
    assert preferred_port(ports[0]) == ports[0]


def test_another_process_with_the_same_id_is_left_alone(tmp_path: Path) -> None:
    from tests.servers.processes import Running

    other = start(["sleep", "1000"], tmp_path / "log", dict(os.environ), tmp_path)
    recorded = Running(other.pid, "Thu Jan 1 00:00:00 1970")
    assert not recorded.alive()
    assert recorded.members() == []
    recorded.stop(signal.SIGKILL, 0)
    assert other.alive()
    other.stop(signal.SIGKILL, 5)
