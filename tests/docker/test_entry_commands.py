"""The commands of the images, as an ordinary user on a read-only tree: what a container would do, without an engine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.conftest import PHOTOS, ROOT
from tests.docker.files import command, environment, health_command
from tests.read_only_tree import ReadOnlyTree, read_only_tree
from tests.servers.ports import free_port

pytestmark = pytest.mark.servers


@pytest.fixture
def tree() -> Iterator[ReadOnlyTree]:
    with read_only_tree() as found:
        for name in ("data", "cache", "tmp"):
            (found.folder / name).mkdir()
            (found.folder / name).chmod(0o777)
        shutil.copytree(PHOTOS, found.folder / "photos", ignore=lambda _, names: sorted(names)[3:])
        yield found


def variables(target: str, tree: ReadOnlyTree, broker: str) -> dict[str, str]:
    """The variables of the image, with its volumes in the writable folder, and a deployment's settings."""
    found = {}
    for name, value in environment(target).items():
        for volume in ("data", "cache"):
            if value.startswith(f"/{volume}"):
                value = str(tree.folder) + value
        found[name] = value
    return {
        **found,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(tree.folder / "tmp"),
        "HF_HUB_OFFLINE": "1",
        "HOSTNAME": os.uname().nodename,
        "LDOT_BROKER": broker,
        "LDOT_QUEUE": f"ldot-{os.getpid()}",  # other tests use the same Redis
        "OMP_NUM_THREADS": "1",
    }


@contextmanager
def running(
    arguments: list[str], tree: ReadOnlyTree, env: dict[str, str], ready: Callable[[str], bool]
) -> Iterator[Path]:
    """Start a command, wait until it is ready, and end it by SIGTERM, which it must obey."""
    log = tree.folder.parent / "log"
    process = tree.start(arguments, log, env, tree.folder / "data")
    try:
        deadline = time.monotonic() + 120
        while not ready(log.read_text(errors="replace")):
            assert process.poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < deadline, log.read_text(errors="replace")
            time.sleep(0.1)
        yield log
        process.terminate()
        # uvicorn ends itself by the same signal after it has shut down.
        assert process.wait(60) in (0, -signal.SIGTERM), log.read_text(errors="replace")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert "Read-only file system" not in log.read_text(errors="replace")
    assert "Permission denied" not in log.read_text(errors="replace")


def test_the_tree_is_read_only_and_the_user_is_not_root(tree: ReadOnlyTree) -> None:
    """Without this, the other tests would show nothing."""
    env = {"PATH": os.environ["PATH"]}
    for folder in (ROOT, Path(sys.prefix), Path("/")):
        status, output = tree.run(["touch", str(folder / "written")], env, tree.folder)
        assert status != 0
        assert "Read-only file system" in output
        assert not (folder / "written").exists()
    assert tree.run(["touch", "written"], env, tree.folder)[0] == 0
    assert tree.run(["id", "-u"], env, tree.folder) == (0, "65534\n")


@pytest.mark.slow
def test_the_worker(tree: ReadOnlyTree, redis_url: str) -> None:
    env = variables("worker", tree, redis_url)
    with running(command("worker"), tree, env, lambda log: " ready." in log):
        status, output = tree.run(health_command("worker"), env, tree.folder / "data")
        assert (status, "1 node online" in output) == (0, True), output
        enqueue = ["celery", "-A", "workers", "enqueue", str(tree.folder / "photos")]
        status, output = tree.run(enqueue, env, tree.folder / "data")
        assert (status, "3 added" in output) == (0, True), output
    check = [part.replace("--timeout 20", "--timeout 2") for part in health_command("worker")]
    status, output = tree.run(check, env, tree.folder / "data")
    assert (status, "No nodes replied" in output) == (69, True), output


@pytest.mark.slow
def test_the_api(tree: ReadOnlyTree, redis_url: str) -> None:
    pytest.importorskip("ldot_milvus.serve.app", reason="pip install 'ldot-milvus[serve]'")
    port = str(free_port())
    own = command("api")
    assert own[-2] == "--port"
    env = {**variables("api", tree, redis_url), "LDOT_SERVE_TOKEN": "a-token-of-clients"}
    check = [part.replace(":8080/", f":{port}/") for part in health_command("api")]

    def healthy(_: str) -> bool:
        return subprocess.run(check, env={**os.environ, "PATH": env["PATH"]}, capture_output=True).returncode == 0

    with running([*own[:-1], port], tree, env, healthy):
        assert tree.run(check, env, tree.folder / "data")[0] == 0
    assert tree.run(check, env, tree.folder / "data")[0] != 0
