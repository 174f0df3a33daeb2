"""Rows agree with the files after any history of photos and tars that are edited, moved, copied and removed."""

from __future__ import annotations

import io
import os
import random
import shutil
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from ldot_milvus import open_store
from ldot_milvus.images import content_id
from ldot_milvus.ingest.changes import change_rows, prune
from ldot_milvus.ingest.ingestor import Ingestor, Report
from ldot_milvus.ingest.reconciliation import MAX_COPIES, content_of
from ldot_milvus.sources import expand
from ldot_milvus.stores import Record
from ldot_milvus.stores.local.store import FaissStore
from tests.conftest import make_photo
from tests.faulty import QuickModel

PHOTOS = [make_photo(seed, (20, 20)) + bytes(seed) for seed in range(6)]  # of different sizes
NAMES = [f"{folder}/{name}.jpg" for folder in ("x", "y", "y/z") for name in "ab"]
TARS = ["x/s.tar", "t.tar"]
HISTORIES = int(os.environ.get("LDOT_TEST_HISTORIES", "40"))


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def photos_at(root: Path) -> dict[str, set[bytes]]:
    """The contents of every photo by its source: what the rows are compared with, read without the code under test."""
    found = {str(path): {path.read_bytes()} for path in root.rglob("*.jpg")}
    for path in root.rglob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                found.setdefault(f"{path}/{member.name}", set()).add(file.read())
    return found


class Library(RuleBasedStateMachine):
    """A folder that changes at random between random runs of what ``enqueue`` does, in this process."""

    tiny_model = ""
    address = "faiss:{}/store"

    @initialize()
    def start(self) -> None:
        self.cwd = os.getcwd()
        self.top = Path(tempfile.mkdtemp()).resolve()
        self.root = self.top / "photos"
        for name in ("x", "y/z"):
            (self.root / name).mkdir(parents=True)
        (self.top / "elsewhere").mkdir()
        self.store = open_store(self.address.format(self.top), "photos")
        self.read: set[tuple[str, str, str]] = set()  # every tenant, source and its content when it was ingested
        self.described: set[tuple[str, str]] = set()  # tenants and contents whose rows have a caption

    def teardown(self) -> None:
        os.chdir(self.cwd)
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.top)

    @rule(name=st.sampled_from(NAMES), photo=st.integers(0, len(PHOTOS) - 1))
    def write(self, name: str, photo: int) -> None:
        (self.root / name).write_bytes(PHOTOS[photo])

    @rule(name=st.sampled_from(NAMES), other=st.sampled_from(NAMES), swap=st.booleans())
    def rename(self, name: str, other: str, swap: bool) -> None:
        one, two = self.root / name, self.root / other
        if one.exists() and one != two:
            data = two.read_bytes() if two.exists() else None
            one.replace(two)
            if swap and data is not None:
                one.write_bytes(data)

    @rule(name=st.sampled_from(NAMES))
    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    @rule(back=st.booleans())
    def move_a_folder(self, back: bool) -> None:
        """``x`` goes to ``w`` and comes back, as a library does on another disk."""
        one, two = (self.root / name for name in (("w", "x") if back else ("x", "w")))
        if one.exists():
            if two.exists():
                shutil.rmtree(two)
            one.rename(two)
            (self.root / "x").mkdir(exist_ok=True)

    @rule(name=st.sampled_from(TARS), members=st.lists(st.tuples(
        st.sampled_from(["a.jpg", "./b.jpg", "d/a.jpg"]), st.integers(0, len(PHOTOS) - 1)), max_size=4))  # fmt: skip
    def write_tar(self, name: str, members: list[tuple[str, int]]) -> None:
        write_tar(self.root / name, [(member, PHOTOS[photo]) for member, photo in members])

    @rule(
        paths=st.sets(st.sampled_from([".", "x", "y", "y/z", "w", *TARS]), min_size=1, max_size=3).map(sorted),
        cwd=st.sampled_from(["elsewhere", "photos", "photos/y"]),
        way=st.sampled_from(["absolute", "relative", "odd"]),
        with_prune=st.booleans(),
        captions=st.booleans(),
        tenant=st.sampled_from(["default", "default", "ann"]),
        chunk=st.sampled_from([1, 3, 64]),
        seed=st.integers(0, 99),
    )
    def enqueue(
        self, paths: list[str], cwd: str, way: str, with_prune: bool, captions: bool, tenant: str, chunk: int, seed: int
    ) -> None:
        os.chdir(self.top / cwd)
        present = [path for path in paths if photos_in(self.root / path)]
        given = absolute = [str(self.root / path) for path in present]
        if way != "absolute":
            given = [os.path.relpath(path) for path in given]
        if way == "odd":
            given = [f".//{path}/." if not path.endswith(".tar") else f"./{path}" for path in given]
        if not given:
            return
        sources = list(expand(given))
        before = photos_at(self.root)
        order = [replace(source, namespace=tenant) for source in sources]
        if captions:
            order = [replace(source, caption=caption_of(before[source.source])) for source in order]
        random.Random(seed).shuffle(order)  # chunks are processed in any order
        ingestor = Ingestor(self.store, self.tiny_model)
        total = Report()
        for start in range(0, len(order), chunk):
            total.add(ingestor.ingest(order[start : start + chunk]))
        assert total.failed == []
        if {row.namespace for row in self.store.iterate()} <= {tenant}:
            assert total.stale == 0
        if with_prune:
            pruning = prune(self.store, given, sources)
            assert pruning.undecided == []
            change_rows(self.store, pruning.changes())
        now = photos_at(self.root)
        read = {source.source for source in sources}
        contents = {(source, content_id(data)) for source in read for data in now[source]}
        self.read |= {(tenant, *found) for found in contents}
        for row in self.store.iterate({"namespace": tenant}):
            if row.source in read or content_of(row) in {content for _, content in contents}:
                assert holds(now, row), f"{row.source} does not hold the photo of its row"
            if with_prune and row.source.startswith(tuple(f"{path}/" for path in absolute)):
                assert row.source in now  # a tar below a folder is not listed with it, and its members are not read
        if captions:
            without = {content for source, content in contents if len(now[source]) > 1}
            self.described |= {(tenant, content) for _, content in contents if content not in without}

    @invariant()
    def no_photo_is_lost(self) -> None:
        """Every photo that is where it was ingested has a row, which keeps its caption."""
        if hasattr(self, "store"):
            now = {(source, content_id(data)) for source, found in photos_at(self.root).items() for data in found}
            rows = {(row.namespace, content_of(row)): row for row in self.store.iterate()}
            assert len(rows) == self.store.count()
            # One that was overwritten and came back is ingested again.
            self.read = {(tenant, *found) for tenant, *found in self.read if tuple(found) in now}
            assert {(tenant, content) for tenant, _, content in self.read} <= rows.keys()
            self.described &= rows.keys()
            assert {key for key in self.described if rows[key].caption != key[1][:8]} == set()


def caption_of(found: set[bytes]) -> str:
    """A caption that belongs to the content; none if two members of a tar share a name."""
    return content_id(*found)[:8] if len(found) == 1 else ""


def photos_in(path: Path) -> bool:
    if path.suffix == ".tar":
        return path.exists() and bool(photos_at(path.parent)) and tar_has_photos(path)
    return path.is_dir() and any(
        file.suffix == ".jpg" for file in path.rglob("*") if file.is_file()
    )  # fmt: skip


def tar_has_photos(path: Path) -> bool:
    with tarfile.open(path) as tar:
        return bool(tar.getnames())


def holds(now: dict[str, set[bytes]], row: Record) -> bool:
    return content_of(row) in {content_id(data) for data in now.get(row.source, ())}


@pytest.mark.parametrize("address", ["faiss:{}/store", "{}/milvus.db"], ids=["local", "milvus_lite"])
def test_rows_agree_with_the_files_after_any_history(
    address: str, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ingestor, "embedder", QuickModel())
    monkeypatch.setattr(Library, "tiny_model", tiny_model)
    monkeypatch.setattr(Library, "address", address)
    run_state_machine_as_test(
        Library,
        settings=settings(
            max_examples=HISTORIES if "faiss" in address else max(HISTORIES // 20, 3), stateful_step_count=20,
            deadline=None, suppress_health_check=list(HealthCheck), database=None,
        ),
    )  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.fixture
def ingest(root: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch):
    """Ingests folders and tars below ``root`` into ``ingest.store``."""
    monkeypatch.setattr(Ingestor, "embedder", QuickModel())
    with open_store(f"faiss:{root}/store", "photos") as store:

        def run(*paths: str, **fields: str) -> Report:
            sources = expand([str(root / path) for path in paths])
            return Ingestor(store, tiny_model).ingest([replace(source, **fields) for source in sources])

        run.store = store  # type: ignore[attr-defined]
        run.rows = lambda: {r.id: os.path.relpath(r.source, root) for r in store.iterate()}  # type: ignore[attr-defined]
        yield run


def test_a_row_of_an_earlier_version_gets_its_absolute_source(ingest, root: Path) -> None:
    """A relative source is decided by nobody but the photo itself; prune keeps and lists the row."""
    (root / "one/a.jpg").write_bytes(PHOTOS[0])
    (root / "one/b.jpg").write_bytes(PHOTOS[1])
    ingest("one")
    ingest.store.update([replace(row, source="old/a.jpg") for row in ingest.store.iterate()])
    (root / "one/b.jpg").unlink()
    report = ingest("one")
    assert (report.added, report.updated, report.unchanged) == (0, 1, 0)
    pruning = prune(ingest.store, [str(root / "one")], expand([str(root / "one")]))
    assert (pruning.changes(), [row.source for row in pruning.undecided]) == ([], ["old/a.jpg"])
    assert ingest("one").unchanged == 1


def test_what_cannot_be_decided_is_kept_and_listed(ingest, root: Path) -> None:
    """A link whose target is not mounted, and a damaged tar."""
    (root / "two/a.jpg").write_bytes(PHOTOS[0])
    (root / "one/stays.jpg").write_bytes(PHOTOS[1])
    (root / "one/link.jpg").symlink_to(root / "two/a.jpg")
    write_tar(root / "one/s.tar", [("b.jpg", PHOTOS[2]), ("c.jpg", PHOTOS[3])])
    ingest("one/link.jpg", "one/stays.jpg", "one/s.tar")
    (root / "two/a.jpg").unlink()
    os.truncate(root / "one/s.tar", 700)
    pruning = prune(ingest.store, [str(root / "one")], [s for s in expand([str(root / "one")]) if "stays" in s.path])
    assert (pruning.gone, pruning.moved) == ([], [])
    assert {Path(row.source).name for row in pruning.undecided} == {"b.jpg", "c.jpg"}


def test_a_photo_overwritten_by_a_damaged_one_keeps_its_row(ingest, root: Path) -> None:
    (root / "one/a.jpg").write_bytes(PHOTOS[0])
    ingest("one")
    (root / "one/a.jpg").write_bytes(PHOTOS[1][:200])
    report = ingest("one")
    assert (len(report.failed), report.replaced) == (1, 0)
    assert prune(ingest.store, [str(root / "one")], expand([str(root / "one")])).changes() == []
    assert ingest.rows() == {content_id(PHOTOS[0]): "one/a.jpg"}


def test_another_namespace_keeps_its_row(ingest, root: Path) -> None:
    (root / "one/a.jpg").write_bytes(PHOTOS[0])
    ingest("one", namespace="ann")
    (root / "one/a.jpg").write_bytes(PHOTOS[1])
    report = ingest("one", namespace="bob")
    assert (report.added, report.replaced, report.stale) == (1, 0, 1)
    assert len(ingest.rows()) == 2


@pytest.mark.parametrize("copies", [1, MAX_COPIES - 1, MAX_COPIES + 1])
def test_a_copy_in_another_folder_keeps_the_row(ingest, root: Path, copies: int) -> None:
    """With more copies than a row lists, it is kept even if none of those listed exists any more."""
    (root / "one/a.jpg").write_bytes(PHOTOS[0])
    for number in range(copies):
        (root / f"two/{number}.jpg").write_bytes(PHOTOS[0])
    ingest("one")
    assert ingest("two").unchanged == copies
    assert (ingest("one").unchanged, ingest("two").unchanged) == (1, copies)
    (root / "one/a.jpg").write_bytes(PHOTOS[1])
    for number in range(copies - 1):
        (root / f"two/{number}.jpg").unlink()
    report = ingest("one")
    full = copies > MAX_COPIES
    assert (report.added, report.replaced, report.stale) == (1, 0, int(full))
    assert ingest.rows()[content_id(PHOTOS[0])] == ("one/a.jpg" if full else f"two/{copies - 1}.jpg")


def test_a_deletion_that_came_too_late(ingest, root: Path) -> None:
    """Between the decision and the deletion, a worker has found the photo elsewhere."""
    (root / "one/a.jpg").write_bytes(PHOTOS[0])
    (root / "one/b.jpg").write_bytes(PHOTOS[1])
    ingest("one")
    (root / "one/a.jpg").rename(root / "two/a.jpg")
    pruning = prune(ingest.store, [str(root / "one")], list(expand([str(root / "one")])))
    assert [row.id for row in pruning.gone] == [content_id(PHOTOS[0])]
    assert ingest("two").updated == 1
    report = change_rows(ingest.store, pruning.changes())
    assert (report.deleted, report.unchanged) == (0, 1)
    assert ingest.rows()[content_id(PHOTOS[0])] == "two/a.jpg"


def test_a_crash_at_any_write_loses_no_photo(ingest, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ends before or after any of its writes; the next one completes the work."""

    class Crash(BaseException):
        pass

    left = [0]
    for name in ("upsert", "update", "delete"):
        for after in (False, True):
            written = getattr(FaissStore, name)

            def crashing(self, *args, written=written, after=after, **kwargs):
                result = written(self, *args, **kwargs) if after else None
                left[0] -= 1
                if left[0] == 0:
                    raise Crash
                return result if after else written(self, *args, **kwargs)

            monkeypatch.setattr(FaissStore, name, crashing)
    store, folder = ingest.store, str(root / "one")
    for crash_at in range(1, 40):
        for path in Path(folder).iterdir():
            path.unlink()
        for number, data in enumerate(PHOTOS[:5]):
            (root / f"one/{number}.jpg").write_bytes(data)
        left[0] = 0
        ingest("one")
        (root / "one/0.jpg").rename(root / "one/moved.jpg")
        shutil.copy(root / "one/1.jpg", root / "one/2.jpg")
        (root / "one/3.jpg").write_bytes(PHOTOS[5])
        (root / "one/4.jpg").unlink()
        left[0] = crash_at
        try:
            ingest("one")
            change_rows(store, prune(store, [folder], list(expand([folder]))).changes())
        except Crash:
            pass
        finished, left[0] = left[0] > 0, 0
        assert {content_id(PHOTOS[number]) for number in (0, 1)} <= {row.id for row in store.iterate()}
        ingest("one")
        change_rows(store, prune(store, [folder], list(expand([folder]))).changes())
        assert ingest.rows().keys() == {content_id(PHOTOS[number]) for number in (0, 1, 5)}
        if finished:
            break
    assert finished
    assert crash_at > 4
