"""The commands that monitor and correct ingestion: failures, progress, delete, prune, metrics."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ldot_milvus import open_store
from ldot_milvus.ingest.ingestor import Ingestor
from tests.conftest import Run, make_photo
from tests.faulty import QuickModel
from tests.servers.ports import free_port, wait_for_port
from tests.unit.sources.test_sources import make_tar
from tests.worker_process import CELERY, Worker

Folder = Callable[[int], Path]


@pytest.fixture
def celery(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: str) -> Callable[..., Result]:
    """Call a command through Celery's command line, in this process and in an empty folder."""
    from celery.bin.celery import celery as command_line

    monkeypatch.setattr(Ingestor, "embedder", QuickModel())
    monkeypatch.setenv("LDOT_MODEL", tiny_model)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(command_line, ["-A", "workers", *arguments], catch_exceptions=False)


def sources(tmp_path: Path) -> list[str]:
    with open_store(f"faiss:{tmp_path / 'ldot-data'}", "images") as store:
        return sorted(str(Path(row.source).relative_to(tmp_path)) for row in store.iterate())


def test_enqueue_counts_what_it_saw_and_did_not_ingest(
    celery: Callable[..., Result], photo_folder: Folder, tmp_path: Path
) -> None:
    folder = photo_folder(2)
    for name in ("clip.mov", "x.DNG", "@eaDir/0000.jpg/T.jpg", "drafts/a.gif"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    (tmp_path / "m.jsonl").write_text('{"file": "0000.jpeg", "caption": "x"}')
    for options in ((), ("--prune", "--dry-run"), ()):
        done = celery(
            "enqueue", "photos", "--exclude", "drafts", "--exclude", "*.tmp", "--metadata", "m.jsonl", *options
        )
        assert done.exit_code == 0, done.output
        _, listing = done.stdout.split("Seen and not ingested:\n")
        lines = [line for line in listing.splitlines() if line.startswith("  ")]
        assert sorted(lines) == [
            "  RAW photos: 1 (photos/x.DNG): export them as JPEG",
            "  excluded files and folders: 1 (photos/drafts)",
            "  metadata lines that fit no photo: 1 (0000.jpeg [nearest: 0000.jpg])",
            "  system folders: 1 (photos/@eaDir): give such a folder as PATH to ingest its photos",
            "  videos: 1 (photos/clip.mov)",
        ]
    assert sources(tmp_path) == ["photos/0000.jpg", "photos/0001.jpg"]
    assert "Seen and not ingested" not in celery("enqueue", "photos/0000.jpg").stdout


def test_prune_keeps_the_rows_of_excluded_photos(celery: Callable[..., Result], tmp_path: Path) -> None:
    make_tar(tmp_path / "s.tar", {f"{n}.jpg": make_photo(n) for n in range(3)})
    assert celery("enqueue", "s.tar").exit_code == 0
    make_tar(tmp_path / "s.tar", {f"{n}.jpg": make_photo(n) for n in range(2)})
    done = celery("enqueue", "s.tar", "--exclude", "0.*", "--prune")
    assert "1 row will be deleted" in done.stdout
    assert sources(tmp_path) == ["s.tar/0.jpg", "s.tar/1.jpg"]


def test_failures_are_listed_retried_and_cleared(
    celery: Callable[..., Result], photo_folder: Folder, tmp_path: Path
) -> None:
    folder = photo_folder(2)
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes(b"")
    first = celery("enqueue", "photos")
    assert first.exit_code == 1
    assert "failures --retry" in first.stderr
    listed = celery("failures").stdout.splitlines()
    assert [re.sub(r"^\S+ \S+  ", "", line) for line in listed] == [
        "attempt 1  photos/a.jpg: the file is empty", "attempt 1  photos/b.jpg: the file is empty",
    ]  # fmt: skip
    (folder / "a.jpg").write_bytes(make_photo(50))
    again = celery("failures", "--retry")
    assert again.exit_code == 1
    assert "1 added, 0 updated, 0 unchanged, 1 failed" in again.stdout
    (left,) = celery("failures", "--json").stdout.splitlines()
    assert json.loads(left).items() >= {
        "source": "photos/b.jpg", "reason": "the file is empty", "attempt": 2, "collection": "images", "task": "ingest",
    }.items()  # fmt: skip
    assert "photos/b.jpg" not in celery("failures", "--collection", "other").stdout
    assert celery("failures", "--retry", "--clear").exit_code == 2
    assert "1 failure cleared" in celery("failures", "--clear").stdout
    assert "No failures" in celery("failures").stdout
    assert "photos/a.jpg" in sources(tmp_path)


def test_progress_of_a_run(celery: Callable[..., Result], photo_folder: Folder, tmp_path: Path) -> None:
    photo_folder(5)
    celery("enqueue", "photos")
    unknown = celery("progress", "none")
    assert unknown.exit_code == 2
    id = unknown.stderr.split("last runs: ")[1].strip()
    text = celery("progress", id).stdout
    assert "5 of 5 (100 %)" in text
    assert "complete" in text
    assert "5 added, 0 updated, 0 unchanged, 0 failed" in text
    assert "seconds: decode" in text
    values = json.loads(celery("progress", id, "--json").stdout)
    assert (values["items"], values["done"], values["complete"], values["sums"]["added"]) == (5, 5, True, 5)
    elsewhere = celery("progress", id, "--store", f"faiss:{tmp_path / 'another'}")
    assert elsewhere.exit_code == 2


def test_delete_by_id_source_and_filter(celery: Callable[..., Result], photo_folder: Folder, tmp_path: Path) -> None:
    photo_folder(4)
    celery("enqueue", "photos")
    with open_store(f"faiss:{tmp_path / 'ldot-data'}", "images") as store:
        id = next(row.id for row in store.iterate() if row.source == str(tmp_path / "photos/0000.jpg"))
    dry = celery("delete", id, "--source", "photos/0001.jpg", "--dry-run")
    assert "2 rows would be deleted" in dry.stdout
    assert "photos/0001.jpg" in dry.stdout
    assert len(sources(tmp_path)) == 4
    done = celery("delete", id, "--source", str(tmp_path / "photos/0001.jpg"))
    assert "2 deleted, 0 updated, 0 unchanged, 0 failed" in done.stdout
    assert sources(tmp_path) == ["photos/0002.jpg", "photos/0003.jpg"]
    assert "nothing to delete" in celery("delete", id).stdout
    assert "2 deleted" in celery("delete", "--filter", '{"width": {"$gte": 1}}').stdout
    for mistake in ([], ["--filter", "{"], ["--filter", "{}"], ["--filter", '{"colour": 1}']):
        refused = celery("delete", *mistake)
        assert refused.exit_code == 2
        assert len(refused.stderr.strip().splitlines()) == 1


def test_prune(celery: Callable[..., Result], photo_folder: Folder, tmp_path: Path) -> None:
    folder = photo_folder(4)
    celery("enqueue", "photos")
    (folder / "0000.jpg").unlink()
    (folder / "0001.jpg").rename(folder / "renamed.jpg")
    (folder / "new.jpg").write_bytes(make_photo(60))
    dry = celery("enqueue", "photos", "--prune", "--dry-run")
    assert "1 row would be deleted" in dry.stdout
    assert f"{folder}/0001.jpg -> {folder}/renamed.jpg" in dry.stdout
    assert len(sources(tmp_path)) == 4
    done = celery("enqueue", "photos", "--prune")
    assert done.exit_code == 0, done.stderr
    assert "1 added, 1 updated, 2 unchanged" in done.stdout
    assert "1 deleted, 0 updated" in done.stdout
    assert sources(tmp_path) == [f"photos/{name}.jpg" for name in ("0002", "0003", "new", "renamed")]
    assert "Nothing to prune" in celery("enqueue", "photos", "--prune").stdout
    assert celery("enqueue", "photos", "--dry-run").exit_code == 2
    assert celery("enqueue", "photos/0002.jpg", "--prune", "--dry-run").exit_code == 2


@pytest.mark.servers
def test_through_the_broker_with_metrics_and_a_log_of_json(
    run: Run, redis_url: str, photo_folder: Folder, tiny_model: str, tmp_path: Path
) -> None:
    """A worker ingests and deletes; the exporter shows the queue before and the outcome after."""
    import redis

    redis.Redis.from_url(redis_url).flushdb()
    folder = photo_folder(6)
    (folder / "bad.jpg").write_bytes(b"")
    env = {"LDOT_MODEL": tiny_model, "LDOT_BROKER": redis_url, "LDOT_STORE": f"faiss:{tmp_path / 'ldot-data'}"}
    port = free_port()
    exporter = subprocess.Popen(
        [CELERY, "-A", "workers", "metrics", "--port", str(port)], env={**os.environ, **env}, cwd=tmp_path
    )
    worker = None
    try:
        wait_for_port(port, exporter)
        sent = run("celery", "-A", "workers", "enqueue", "photos", "--chunk-size", "2", "--no-wait", env=env)
        assert sent.returncode == 0
        assert metrics(port)['ldot_queue_depth{queue="ldot"}'] == 4
        quick = {"LDOT_LOG_FORMAT": "json", "LDOT_TEST_FAULTS": "quick_model"}
        worker = Worker(tmp_path, {**env, **quick}, "--pool", "solo", app="tests.faulty")
        deadline = time.monotonic() + 60
        while (found := metrics(port)).get("ldot_chunks_total", 0) < 4:
            assert time.monotonic() < deadline, found
            time.sleep(0.2)
        deleted = run("celery", "-A", "workers", "delete", "--source", "photos/0001.jpg", env=env)
        assert "1 deleted" in deleted.stdout
        found = metrics(port)
        assert found['ldot_photos_total{outcome="added"}'] == 6
        assert found['ldot_photos_total{outcome="failed"}'] == 1
        assert found['ldot_failures_total{reason="the file is empty"}'] == 1
        assert found['ldot_queue_depth{queue="ldot"}'] == 0
        assert found["ldot_deleted_rows_total"] == 1
        assert found["ldot_read_bytes_total"] == sum(path.stat().st_size for path in folder.iterdir())
        for stage in ("read", "decode", "regions", "encode", "write"):
            assert found[f'ldot_seconds_total{{stage="{stage}"}}'] > 0
        assert found['ldot_up{part="broker"}'] == found['ldot_up{part="journal"}'] == 1
        lines = [json.loads(line) for line in worker.log.read_text().splitlines() if line.startswith("{")]
        chunks = [line for line in lines if "chunk" in line]
        assert sum(line["added"] for line in chunks) == 6
        assert all(line["run"] and line["seconds"] is not None and line["level"] == "INFO" for line in chunks)
    finally:
        exporter.kill()
        exporter.wait()
        if worker is not None:
            worker.stop()


def metrics(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as page:
        lines = page.read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_metrics_without_a_broker_or_at_a_port_that_is_taken(celery: Callable[..., Result]) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused = celery("metrics", "--port", str(taken.getsockname()[1]))
    assert refused.exit_code == 2
    assert "choose another --port" in refused.stderr


def test_help_names_every_command(celery: Callable[..., Result]) -> None:
    text = celery("--help").stdout
    for command in ("enqueue", "delete", "failures", "metrics", "progress", "status"):
        assert re.search(rf"^  {command} ", text, re.MULTILINE)
