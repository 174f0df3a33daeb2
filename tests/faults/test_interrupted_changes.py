"""Processes killed with SIGKILL at random moments inside a prune and inside an upgrade of the schema."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ldot_milvus import open_store
from ldot_milvus.images import content_id
from ldot_milvus.stores.identity import content_of
from ldot_milvus.stores.regions import RegionStore
from tests.integration.stores.test_upgrade import fill_version_1
from tests.varied import varied_photos

UPGRADE = """
from ldot_milvus.stores import open_store
from ldot_milvus.stores.regions import RegionStore
from ldot_milvus.stores.upgrade import upgrade
store = open_store({store!r}, "photos")
store.count()
print("ready", flush=True)
upgrade(store, [RegionStore({regions!r}, "r" * 32)], progress=lambda rows: print("step", flush=True))
print("done", flush=True)
"""

# In a process of its own, since a file of Milvus Lite is open in one process until that ends.
READ = """
import json
from ldot_milvus.errors import StoreError
from ldot_milvus.stores import open_store
from ldot_milvus.stores.identity import content_of
from ldot_milvus.stores.upgrade import require_current
store = open_store({store!r}, "photos")
rows = [(row.namespace, content_of(row), row.id, row.kind) for row in store.iterate()]
version, refused = store.schema_version, ""
try:
    require_current(store)
except StoreError as error:
    refused = str(error)
print(json.dumps([version, refused, rows]))
"""

FILL = """
from tests.integration.stores.test_upgrade import fill_version_1
from ldot_milvus.stores import open_store
from ldot_milvus.stores.regions import RegionStore
fill_version_1(open_store({store!r}, "photos"), RegionStore({regions!r}, "r" * 32), 600)
print("done")
"""

PRUNE = """
import os
from ldot_milvus.batches import batched
from ldot_milvus.ingest.changes import change_rows, prune
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.sources import expand
from ldot_milvus.stores import open_store
from tests.faulty import QuickModel
Ingestor.embedder = QuickModel()
store = open_store({store!r}, "photos")
ingestor = Ingestor(store, {model!r})
sources = list(expand([{photos!r}]))
print("ready", flush=True)
for chunk in batched(sources, 16):
    assert not ingestor.ingest(chunk).failed
    print("step", flush=True)
pruning = prune(store, [{photos!r}], sources)
assert not pruning.undecided
for changes in batched(pruning.changes(), 16):
    change_rows(store, changes, ingestor.region_store)
    print("step", flush=True)
print("done", flush=True)
"""


def killed_after(script: str, steps: int, seconds: float) -> bool:
    """Run a script, and kill it so long after a number of steps; return whether it was done before."""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    ended = any(process.stdout.readline() != "step\n" for _ in range(steps))
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    printed, problem = process.communicate()
    assert "Error" not in problem, problem
    return ended or "done" in printed


def output_of(script: str) -> str:
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                             env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize(
    ("address", "kills"),
    [
        pytest.param("faiss:{}/store", 4, id="local"),
        pytest.param("faiss:{}/store", 25, id="local_often", marks=pytest.mark.slow),
        pytest.param("{}/milvus.db", 8, id="milvus_lite", marks=pytest.mark.slow),
    ],
)
def test_an_upgrade_killed_at_random_moments(address: str, kills: int, tmp_path: Path) -> None:
    """Every photo keeps a row with region data, and the collection is whole or is still of version 1."""
    rng = random.Random(kills)
    address, regions = address.format(tmp_path), RegionStore(str(tmp_path / "regions"), "r" * 32)
    names = {"store": address, "regions": str(tmp_path / "regions")}
    output_of(FILL.format(**names))
    with open_store(f"faiss:{tmp_path}/expected", "photos") as store:
        expected = fill_version_1(store, RegionStore(str(tmp_path / "other"), "r" * 32), 600)
    interrupted = 0
    for kill in range(kills):
        done = killed_after(UPGRADE.format(**names), rng.randrange(3) if kill else 1, rng.random() * 0.05)
        version, refused, rows = json.loads(output_of(READ.format(**names)))
        photos = [id for _, _, id, kind in rows if kind == "image"]
        assert {(namespace, content) for namespace, content, *_ in rows} == expected.keys()
        assert regions.has(photos) == set(photos)
        if version == 1:
            assert not done
            assert "schema version 1" in refused
            interrupted += 0 < sum(expected[n, c] == id != c for n, c, id, _ in rows) < 1200
    assert interrupted, "no kill came in the middle"
    output_of(UPGRADE.format(**names))
    version, refused, rows = json.loads(output_of(READ.format(**names)))
    assert (version, refused) == (2, "")
    assert {(namespace, content): id for namespace, content, id, _ in rows} == expected
    assert len(rows) == len(expected)


@pytest.mark.parametrize("kills", [4, pytest.param(25, marks=pytest.mark.slow)])
def test_a_prune_killed_at_random_moments(kills: int, tmp_path: Path, tiny_model: str) -> None:
    """A third of the photos is gone, a third has other names, and some were edited: no photo that exists is lost."""
    rng = random.Random(kills)
    photos, before = tmp_path / "photos", tmp_path / "before"
    varied_photos(before, 120, seed=3)
    names = sorted(path.name for path in before.rglob("*") if path.is_file())
    done = 0
    for attempt in range(kills):
        store = tmp_path / f"store{attempt}"
        shutil.rmtree(photos, ignore_errors=True)
        shutil.copytree(before, photos)
        script = PRUNE.format(store=f"faiss:{store}", model=tiny_model, photos=str(photos))
        if attempt == 0:
            output_of(script)  # the store before the changes
            shutil.copytree(store, tmp_path / "filled")
        else:
            shutil.copytree(tmp_path / "filled", store)
        files = {path.name: path for path in photos.rglob("*") if path.is_file()}
        for number, name in enumerate(names):
            if number % 3 == 0:
                files[name].unlink()
            elif number % 3 == 1:
                files[name].rename(files[name].with_name(f"new-{name}"))
            elif number % 9 == 2:
                files[name].write_bytes(files[name].read_bytes() + b"\0")
        existing = {content_id(path.read_bytes()) for path in photos.rglob("*") if path.is_file()}
        kept = {content_id(path.read_bytes()) for path in before.rglob("*") if path.is_file()} & existing
        done += killed_after(script, rng.randrange(7), rng.random() * 0.1)
        with open_store(f"faiss:{store}", "photos") as opened:
            assert kept <= {content_of(row) for row in opened.iterate()}
        output_of(script)
        with open_store(f"faiss:{store}", "photos") as opened:
            rows = list(opened.iterate())
        assert {row.id for row in rows} == existing
        assert all(content_id(Path(row.source).read_bytes()) == row.id for row in rows)
    assert done < kills, "no kill came before the end"
