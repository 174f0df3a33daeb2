"""New photos that show the same as a row are left out, if this is asked for; no photo that is needed is."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ldot_milvus.images import content_id
from ldot_milvus.ingest import ingestor as ingestor_module
from ldot_milvus.ingest import near_duplicates
from ldot_milvus.ingest.ingestor import Ingestor, Report
from ldot_milvus.ingest.near_duplicates import Hashes, NearDuplicates
from ldot_milvus.ingest.reconciliation import content_of
from ldot_milvus.search.nearness import look_the_same
from ldot_milvus.search.perceptual_hash import perceptual_hash
from ldot_milvus.sources import Source, expand
from ldot_milvus.sources.reading import holds
from ldot_milvus.stores import Record, VectorStore, open_store
from tests.conftest import PHOTOS, Run
from tests.faulty import QuickModel
from tests.unit.sources.test_sources import make_tar
from tests.variants import VARIANTS, encoded
from tests.worker_process import Worker

PATHS = sorted(PHOTOS.glob("*.jpg"))
SAME = ("half", "mirrored", "brighter", "JPEG of quality 60")


def picture(number: int, variant: str | None = None) -> bytes:
    """The bytes of a sample photo, or of a variant of it."""
    image = Image.open(PATHS[number]).convert("RGB").resize((240, 160))
    return encoded(VARIANTS[variant](image) if variant else image)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ingestor, "embedder", QuickModel())


@pytest.fixture(params=["faiss", pytest.param("lite", marks=pytest.mark.servers)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VectorStore]:
    address = f"faiss:{tmp_path / 'store'}" if request.param == "faiss" else str(tmp_path / "x.db")
    with open_store(address, "photos") as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"


@pytest.fixture
def ingest(store: VectorStore, folder: Path, tiny_model: str) -> Callable[..., Report]:
    """Ingests files of the folder, or all of it, with fields; in another process than the last call, if ``anew``."""
    ingestors = [Ingestor(store, tiny_model)]

    def run(*names: str, skip: bool = True, anew: bool = True, **fields: str) -> Report:
        if anew:
            ingestors[0] = Ingestor(store, tiny_model)
        sources = expand([str(folder / name) for name in names] or [str(folder)])
        return ingestors[0].ingest([replace(one, **fields) for one in sources], skip_near_duplicates=skip)

    return run


def names(store: VectorStore) -> list[str]:
    return sorted(Path(row.source).name for row in store.iterate())


def left_out(report: Report) -> dict[str, str]:
    return {Path(one.source).name: Path(one.of).name for one in report.near_duplicates}


@pytest.mark.parametrize("anew", [True, False], ids=["another process", "the same process"])
def test_variants_of_rows_and_of_each_other(
    store: VectorStore, folder: Path, ingest: Callable[..., Report], tiny_model: str, anew: bool
) -> None:
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(picture(number))
    assert ingest().added == 3
    for number in range(4):  # the last one has no row
        for variant in SAME:
            (folder / f"{number}-{variant}.jpg").write_bytes(picture(number, variant))
    shutil.copy(folder / "1-half.jpg", folder / "1-half-copy.jpg")
    for _ in range(2):  # the second time, nothing has changed
        report = ingest(anew=anew)
        first = "3-JPEG of quality 60.jpg"
        expected = {f"{n}-{v}.jpg": f"{n}.jpg" if n < 3 else first for n in range(4) for v in SAME}
        assert left_out(report) == {name: of for name, of in expected.items() if name != first} | {
            "1-half-copy.jpg": "1.jpg"
        }
        assert report.added + report.unchanged == 4
        assert report.total == len(list(folder.iterdir()))
        assert names(store) == sorted(["0.jpg", "1.jpg", "2.jpg", first])
    regions = Ingestor(store, tiny_model).region_store
    contents = [content_id(path.read_bytes()) for path in folder.iterdir()]
    assert regions is not None
    assert regions.has(contents) == {row.id for row in store.iterate()}
    report = ingest(skip=False)
    assert (report.added, report.near_duplicates) == (len(SAME) * 4 - 1, [])


@pytest.mark.parametrize("part_size", [1, 2, 5, 32])
def test_the_first_of_a_chunk_is_kept_while_it_is_still_being_written(
    store: VectorStore, folder: Path, ingest: Callable[..., Report], monkeypatch: pytest.MonkeyPatch, part_size: int
) -> None:
    monkeypatch.setattr(ingestor_module, "PART_SIZE", part_size)
    for number in range(3):
        for place, variant in enumerate([None, *SAME]):
            (folder / f"{place}-{number}.jpg").write_bytes(picture(number, variant))
    report = ingest()
    assert names(store) == ["0-0.jpg", "0-1.jpg", "0-2.jpg"]
    assert left_out(report) == {f"{place}-{n}.jpg": f"0-{n}.jpg" for place in range(1, 5) for n in range(3)}


def test_an_edited_photo_takes_the_place_of_its_former_version(
    store: VectorStore, folder: Path, ingest: Callable[..., Report]
) -> None:
    """Also if a row elsewhere shows the same: its own row would otherwise answer for a photo that is gone."""
    (folder / "a.jpg").write_bytes(picture(0))
    (folder / "b.jpg").write_bytes(picture(1))
    ingest(skip=False)
    (folder / "a.jpg").write_bytes(picture(0, "brighter"))
    report = ingest()
    assert (report.added, report.replaced, report.near_duplicates) == (1, 1, [])
    (folder / "a.jpg").write_bytes(picture(1, "brighter"))
    report = ingest()
    assert (report.added, report.replaced, report.near_duplicates) == (1, 1, [])
    assert all(holds(row.source, content_of(row)) for row in store.iterate())
    assert names(store) == ["a.jpg", "b.jpg"]
    assert ingest().unchanged == 2


@pytest.mark.parametrize("event", ["deleted", "overwritten", "damaged", "region features"])
def test_a_row_whose_photo_is_gone_does_not_count(
    store: VectorStore, folder: Path, ingest: Callable[..., Report], event: str
) -> None:
    (folder / "a.jpg").write_bytes(picture(0))
    ingest()
    (folder / "z.jpg").write_bytes(picture(0, "half"))
    if event == "deleted":
        (folder / "a.jpg").unlink()
    elif event == "region features":  # their row has no pixels to compare
        (folder / "a.npz").write_bytes(b"features")
        (row,) = store.iterate()
        features = {"content_id": content_id(b"features")}
        store.update([replace(row, source=str(folder / "a.npz"), metadata=features)])
    else:
        (folder / "a.jpg").write_bytes(picture(1) if event == "overwritten" else b"")
    report = ingest("z.jpg")
    assert (report.added, report.near_duplicates) == (1, [])


def test_namespaces_are_apart(store: VectorStore, folder: Path, ingest: Callable[..., Report]) -> None:
    for name, variant in {"a.jpg": None, "b.jpg": "half", "c.jpg": "mirrored"}.items():
        (folder / name).write_bytes(picture(0, variant))
    assert ingest("a.jpg", namespace="ann").added == 1
    assert ingest("b.jpg", namespace="bob").added == 1
    assert left_out(ingest("c.jpg", namespace="ann")) == {"c.jpg": "a.jpg"}
    assert left_out(ingest("c.jpg", namespace="bob")) == {"c.jpg": "b.jpg"}
    assert ingest("c.jpg", namespace="eve").added == 1


def test_photos_with_an_id_that_has_a_row(
    store: VectorStore, folder: Path, ingest: Callable[..., Report], tiny_model: str
) -> None:
    """Another photo for the caller's id replaces the former one, and lost region data is written again."""
    (folder / "a.jpg").write_bytes(picture(0))
    (folder / "b.jpg").write_bytes(picture(1))
    ingest("a.jpg")
    ingest("b.jpg", id="mine")
    (folder / "c.jpg").write_bytes(picture(0, "half"))
    assert ingest("c.jpg", id="mine").added == 1
    assert names(store) == ["a.jpg", "c.jpg"]
    regions = Ingestor(store, tiny_model).region_store
    assert regions is not None
    regions.delete([row.id for row in store.iterate()])
    assert ingest("a.jpg").added == 1
    assert ingest("c.jpg", id="mine").added == 1


def test_what_is_no_photo_is_never_left_out(store: VectorStore, ingest: Callable[..., Report], tiny_model: str) -> None:
    """The stub model gives all texts one vector."""
    texts = [Source(f"t{n}", kind="text", caption=f"text {n}") for n in range(3)]
    assert Ingestor(store, tiny_model).ingest(texts, skip_near_duplicates=True).added == 3


def test_members_of_a_tar(store: VectorStore, folder: Path, ingest: Callable[..., Report]) -> None:
    """Two members of one name, and a tar whose members are compared with each other in the next run."""
    make_tar(folder / "s.tar", {"a.jpg": picture(0), "b.jpg": picture(1)})
    assert ingest("s.tar").added == 2
    make_tar(folder / "t.tar", {"a.jpg": picture(0, "half"), "c.jpg": picture(2)})
    report = ingest("t.tar")
    assert (report.added, left_out(report)) == (1, {"a.jpg": "a.jpg"})
    assert report.near_duplicates[0].of == str(folder / "s.tar" / "a.jpg")


def test_a_photo_that_lost_its_row_in_this_run_gets_it_back(
    store: VectorStore, folder: Path, ingest: Callable[..., Report]
) -> None:
    """It was moved, and an edited version took its place: a later chunk finds it under its new name."""
    (folder / "a.jpg").write_bytes(picture(0))
    ingest(caption="mine")
    (folder / "z.jpg").write_bytes(picture(0))
    (folder / "a.jpg").write_bytes(picture(0, "brighter"))
    assert ingest("a.jpg").replaced == 1
    report = ingest("z.jpg", anew=False)
    assert (report.added, report.near_duplicates) == (1, [])
    assert {row.caption for row in store.iterate() if row.source.endswith("z.jpg")} == {"mine"}


@pytest.mark.parametrize("length", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("crowd", [0, 100])
def test_vectors_of_any_length(tmp_path: Path, length: float, crowd: int) -> None:
    """A row is found behind a hundred others whose inner product with the new photo is larger."""
    rng = np.random.default_rng(1)
    data, image = picture(0), Image.open(io.BytesIO(picture(0, "half")))
    (tmp_path / "a.jpg").write_bytes(data)
    vector = rng.normal(size=16).astype(np.float32)
    others = rng.normal(size=(crowd, 16)).astype(np.float32)
    others = vector * 2 + others * np.linalg.norm(vector) / np.linalg.norm(others, axis=1, keepdims=True) * 2
    with open_store(f"faiss:{tmp_path / 'store'}", "photos") as store:
        store.upsert([Record(id=f"c{n}", embedding=other, source="gone") for n, other in enumerate(others)])
        source = str(tmp_path / "a.jpg")
        store.upsert([Record(id=content_id(data), embedding=vector * length, source=source)])
        near = NearDuplicates(store, Hashes(), ())
        row = Record(id="new", embedding=vector, source="b.jpg")
        assert near.leave_out([(row, image)], [row], {"new": {}}) == ([], {})
        assert near.of == {"new": source}
        zero = replace(row, id="zero", embedding=np.zeros(16, np.float32))
        assert near.leave_out([(zero, image)], [zero], {}) == ([zero], {})


def test_hashes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "MAX_HASHES", 3)
    hashes, hash = Hashes(), perceptual_hash(Image.new("RGB", (9, 9)))
    for content in "abcde":
        hashes.add(content, hash)
    assert [content for content in "abcde" if hashes.get(content)] == ["c", "d", "e"]


change = st.tuples(
    st.sampled_from("abcdef"), st.none() | st.tuples(st.integers(0, 2), st.sampled_from([None, *SAME[:2]]))
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(st.lists(st.tuples(st.lists(change, max_size=6), st.integers(1, 6)), min_size=1, max_size=4))
def test_every_photo_is_found_or_a_row_shows_the_same(
    tiny_model: str, runs: list[tuple[list[tuple[str, tuple[int, str | None] | None]], int]]
) -> None:
    """After any changes of a folder: a row's source holds its content, or is gone; a photo has a row or one like it."""
    with tempfile.TemporaryDirectory() as root, open_store(f"faiss:{root}/store", "photos") as store:
        folder = Path(root) / "photos"
        folder.mkdir()
        (folder / "z.jpg").write_bytes(picture(3))
        for changes, size in runs:
            for name, what in changes:
                (folder / f"{name}.jpg").unlink(missing_ok=True)
                if what is not None:
                    (folder / f"{name}.jpg").write_bytes(picture(*what))
            ingestor, sources = Ingestor(store, tiny_model), list(expand([str(folder)]))
            total = Report()
            for start in range(0, len(sources), size):
                total.add(ingestor.ingest(sources[start : start + size], skip_near_duplicates=True))
            assert (total.total, total.failed, total.stale) == (len(sources), [], 0)
            there = [row for row in store.iterate() if Path(row.source).exists()]
            assert all(holds(row.source, content_of(row)) for row in there)
            contents = {content_of(row) for row in there}
            shown = [perceptual_hash(Image.open(row.source)) for row in there]
            for path in folder.iterdir():
                if content_id(path.read_bytes()) not in contents:
                    assert any(look_the_same(perceptual_hash(Image.open(path)), hash) for hash in shown)


@pytest.fixture
def celery(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: str) -> Callable[..., Result]:
    from celery.bin.celery import celery as command_line

    monkeypatch.setenv("LDOT_MODEL", tiny_model)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(command_line, ["-A", "workers", *arguments], catch_exceptions=False)


def test_the_command_counts_them_and_a_retry_leaves_them_out(celery: Callable[..., Result], folder: Path) -> None:
    for number in range(2):
        for place, variant in enumerate([None, *SAME[:2]]):
            (folder / f"{number}{place}.jpg").write_bytes(picture(number, variant))
    (folder / "bad.jpg").write_bytes(b"")
    done = celery("enqueue", "photos", "--skip-near-duplicates")
    assert done.exit_code == 1
    assert "2 added, 0 updated, 0 unchanged, 1 failed, 4 near-duplicates in" in done.stdout
    examples = [f"photos/{name}.jpg [of {folder}/{of}.jpg]" for name, of in (("01", "00"), ("02", "00"), ("11", "10"))]
    assert f"Seen and not ingested: near-duplicates: 4 ({', '.join(examples)}, ...)" in done.stdout
    (folder / "bad.jpg").write_bytes(picture(0, "brighter"))
    retried = celery("failures", "--retry")
    assert retried.exit_code == 0
    assert "0 added, 0 updated, 0 unchanged, 0 failed, 1 near-duplicate in" in retried.stdout
    assert "No failures" in celery("failures").stdout
    (line, *_) = celery("progress", "--json").stdout.splitlines()
    assert json.loads(line)["sums"] == {**json.loads(line)["sums"], "items": 1, "near_duplicates": 1}
    assert json.loads(line)["complete"]
    plain = celery("enqueue", "photos")
    assert "5 added, 0 updated, 2 unchanged, 0 failed in" in plain.stdout
    assert "near-duplicates" not in plain.stdout


@pytest.mark.servers
def test_a_worker_leaves_them_out_too(run: Run, redis_url: str, folder: Path, tmp_path: Path, tiny_model: str) -> None:
    for number in range(2):
        for place, variant in enumerate([None, *SAME[:2]]):
            (folder / f"{number}{place}.jpg").write_bytes(picture(number, variant))
    (folder / "bad.jpg").write_bytes(b"")
    env = {"LDOT_BROKER": redis_url, "LDOT_MODEL": tiny_model, "LDOT_QUEUE": "near"}
    worker = Worker(
        tmp_path, {**env, "LDOT_TEST_FAULTS": "quick_model"}, "--pool", "solo", app="tests.faulty"
    )  # fmt: skip
    try:
        enqueue = ("celery", "-A", "workers", "enqueue", "photos", "--chunk-size", "2")
        done = run(*enqueue, "--skip-near-duplicates", env=env)
        assert done.returncode == 1, done.stderr
        assert "2 added, 0 updated, 0 unchanged, 1 failed, 4 near-duplicates in" in done.stdout
        assert "Seen and not ingested: near-duplicates: 4 (named in the logs of the workers)" in done.stdout
        worker.wait_for(f"photos/12.jpg [of {folder}/10.jpg]")
        (folder / "bad.jpg").write_bytes(picture(1, "brighter"))
        retried = run("celery", "-A", "workers", "failures", "--retry", env=env)
        assert "0 added, 0 updated, 0 unchanged, 0 failed, 1 near-duplicate in" in retried.stdout
        plain = run(*enqueue, env=env)  # by the same worker, which has the collection open
        assert "5 added, 0 updated, 2 unchanged, 0 failed in" in plain.stdout
    finally:
        worker.stop()
