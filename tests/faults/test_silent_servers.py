"""Every command ends with one line when a server accepts connections and never answers, or speaks another protocol."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.ingest.journal import Run, open_journal
from ldot_milvus.ingest.journal.base import FailedItem
from ldot_milvus.ingest.target import Target
from ldot_milvus.sources import expand
from ldot_milvus.stores import open_store
from tests.conftest import PHOTOS
from tests.forked_commands import run_all
from tests.silent_servers import plain_server, silent_server, tls_server

pytestmark = pytest.mark.servers

PHOTO = str(PHOTOS / "000000568290.jpg")
CELERY = ("celery", "-A", "workers")
COMMANDS = {
    "doctor": ("ldot", "doctor"),
    "search": ("ldot", "search", "a bus", "--rerank", "20"),
    "enqueue": (*CELERY, "enqueue", PHOTO),
    "enqueue from s3": (*CELERY, "enqueue", "s3://bucket/photos"),
    "failures": (*CELERY, "failures"),
    "retry": (*CELERY, "failures", "--retry"),
    "progress": (*CELERY, "progress"),
    "delete": (*CELERY, "delete", "--source", PHOTO),
    "worker": (*CELERY, "worker", "--pool", "solo"),
}
TO_BROKER = ("doctor", "enqueue", "retry", "delete", "worker")
TO_JOURNAL = ("enqueue", "failures", "retry", "progress", "delete")
TO_MILVUS = ("doctor", "search", "enqueue", "delete")
TO_REGIONS = ("doctor", "search", "enqueue", "enqueue from s3", "delete")
TO_HUB = ("doctor", "search", "enqueue")

REDIS, AMQP = b"-ERR unknown command\r\n", b"AMQP\x00\x00\x09\x01"
HTTP = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"


@dataclass(frozen=True)
class Kind:
    """A kind of silence.

    Attributes:
        server: what listens: "silent", "tls", or the bytes with which a server without TLS answers everything.
        env: settings, with ``{port}``.
        commands: which commands reach the server.
        says: pattern of the line.
        seconds: limit of a command (docs/services.md), and some for a loaded machine.
    """

    server: str | bytes
    env: dict[str, str]
    commands: Sequence[str]
    says: str
    seconds: float = 30


def broker(address: str, server: str | bytes = "silent") -> Kind:
    return Kind(server, {"LDOT_BROKER": address}, TO_BROKER, r"LDOT_BROKER .* (does not answer|refuses the connection)")


def journal(address: str, server: str | bytes = "silent") -> Kind:
    return Kind(server, {"LDOT_RESULT_BACKEND": address}, TO_JOURNAL, "journal at .* cannot be used", 40)


def milvus(address: str, server: str | bytes = "silent") -> Kind:
    return Kind(server, {"LDOT_STORE": address}, TO_MILVUS, "Milvus at .* does not answer within 30 s", 75)


S3 = {"AWS_ENDPOINT_URL": "http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
      "AWS_DEFAULT_REGION": "us-east-1", "LDOT_REGION_STORE": "s3://bucket/regions"}  # fmt: skip
HUB = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:{port}", "LDOT_MODEL": "some/model"}

GROUPS = {
    "broker": [
        broker("redis://127.0.0.1:{port}/0"),
        broker("rediss://127.0.0.1:{port}/0"),
        broker("amqp://guest:guest@127.0.0.1:{port}//"),
        broker("amqps://guest:guest@127.0.0.1:{port}//"),
        broker("rediss://127.0.0.1:{port}/0", REDIS),
        broker("redis://127.0.0.1:{port}/0", "tls"),
        broker("amqps://guest:guest@127.0.0.1:{port}//", AMQP),
        broker("amqp://guest:guest@127.0.0.1:{port}//", "tls"),
    ],
    "journal": [
        journal("redis://127.0.0.1:{port}/0"),
        journal("rediss://127.0.0.1:{port}/0"),
        journal("rediss://127.0.0.1:{port}/0", REDIS),
        journal("redis://127.0.0.1:{port}/0", "tls"),
    ],
    "milvus": [
        milvus("http://127.0.0.1:{port}"),
        milvus("https://127.0.0.1:{port}"),
        milvus("https://127.0.0.1:{port}", HTTP),
        milvus("http://127.0.0.1:{port}", "tls"),
    ],
    "s3": [Kind("silent", S3, TO_REGIONS, "(region store s3://.*cannot be|s3://bucket/photos).*", 75)],
    "hub": [Kind("silent", HUB, TO_HUB, r"the hub at .* does not answer .*[Tt]imeout", 75)],
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> Path:
    """A store with a photo, whose journal has a failure, so that each command has something to do."""
    folder = tmp_path_factory.mktemp("filled")
    address = f"faiss:{folder}"
    with open_store(address) as store:
        Ingestor(store, tiny_model).ingest(list(expand([PHOTO])))
    target = Target(address, "images", tiny_model)
    run = Run.new("ingest", target, 1)
    with_failure = open_journal(str(folder / "ingestion.sqlite"))
    with_failure.start(run)
    source = next(iter(expand([PHOTO])))
    failed = FailedItem(source.source, "for this test", run.id, "ingest", target, source.to_dict())
    with_failure.end(run.id, "chunk", {"failed": 1.0}, [failed])
    return folder


@pytest.fixture
def servers() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


# The others mostly wait: each takes 40 to 60 seconds.
@pytest.mark.parametrize("group", [
    name if name == "journal" else pytest.param(name, marks=pytest.mark.slow) for name in GROUPS
])  # fmt: skip
def test_every_command_ends_with_one_line(
    group: str, filled: Path, tiny_model: str, servers: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells, about = [], []
    for number, kind in enumerate(GROUPS[group]):
        folder = tmp_path / str(number)
        folder.mkdir()
        port = servers.enter_context(serving(kind.server, folder))
        given = {name: value.format(port=port) for name, value in kind.env.items()}
        if group == "hub":  # its client reads them when it is imported
            for name, value in {**given, "HF_HOME": str(folder / "hub"), "NO_PROXY": "127.0.0.1"}.items():
                monkeypatch.setenv(name, value)
        for name in kind.commands:
            place = folder / name.replace(" ", "-")
            store = shutil.copytree(filled, place / "store")  # of its own, since some commands write
            env = {
                "LDOT_MODEL": tiny_model,
                "LDOT_DEVICE": "cpu",
                "OMP_NUM_THREADS": "1",
                "LDOT_STORE": f"faiss:{store}",
            }
            # A worker waits for its broker without end, and says so: after 10 s on a quiet machine.
            seconds = 30.0 if name == "worker" else kind.seconds
            command = list(COMMANDS[name])
            cells.append({"command": command, "env": {**env, **given}, "folder": str(place), "seconds": seconds})
            about.append((f"{name} with {given} ({kind.server!r})", name, kind))
    wrong = []
    for (what, name, kind), result in zip(about, run_all(cells), strict=True):
        lines = [line for line in result["output"].splitlines() if not line.startswith("No broker is set")]
        if name == "worker":
            right = result["status"] is None and re.search("Cannot connect to .*\n?.*Trying again", result["output"])
        elif name == "doctor":
            findings = lines[lines.index("") + 1 :]  # after the settings
            told = [line for line in findings if re.search(kind.says, line)]
            right = result["status"] == 1 and told and all(line[:4] in ("ok  ", "FAIL") for line in findings)
        else:
            right = result["status"] in (1, 2) and len(lines) == 1 and re.search(kind.says, lines[0])
        if not right:
            wrong.append(f"{what}: status {result['status']} after {result['seconds']:.1f} s: {result['output']}")
    assert not wrong, "\n".join(wrong)


def serving(server: str | bytes, folder: Path) -> AbstractContextManager[int]:
    if isinstance(server, bytes):
        return plain_server(server)
    return tls_server(folder) if server == "tls" else silent_server()
