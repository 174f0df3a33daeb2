"""Groups of near-duplicates in every kind of store, by vectors of any length and by real photos."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldot_milvus.errors import CollectionNotFound, UsageError
from ldot_milvus.search import page
from ldot_milvus.search.duplicates import Duplicate, find_duplicates
from ldot_milvus.stores import Record, VectorStore, open_store
from tests.conftest import PHOTOS, Run
from tests.variants import VARIANTS, encoded

DIM = 24
Rng = np.random.Generator


@pytest.fixture(params=["faiss", pytest.param("lite", marks=pytest.mark.servers)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VectorStore]:
    address = f"faiss:{tmp_path / 'data'}" if request.param == "faiss" else str(tmp_path / "x.db")
    with open_store(address, "photos") as opened:
        yield opened


@pytest.fixture
def local(tmp_path: Path) -> Iterator[VectorStore]:
    with open_store(f"faiss:{tmp_path / 'data'}", "photos") as opened:
        yield opened


@pytest.fixture
def rng() -> Rng:
    return np.random.default_rng(12)


def unit(rng: Rng) -> np.ndarray:
    vector = rng.normal(size=DIM)
    return vector / np.linalg.norm(vector)


def near(vector: np.ndarray, cosine: float, rng: Rng) -> np.ndarray:
    """A vector of the same length at this cosine."""
    length = np.linalg.norm(vector)
    across = rng.normal(size=DIM)
    across -= (across @ vector) / length**2 * vector
    return cosine * vector + np.sqrt(1 - cosine**2) * length * across / np.linalg.norm(across)


def row(id: str, vector: np.ndarray, source: str = "", **fields) -> Record:
    return Record(id=id, embedding=vector.astype(np.float32), source=source or f"gone/{id}.jpg", **fields)


def photo(folder: Path, name: str, number: int, variant: str | None = None) -> tuple[str, dict[str, int]]:
    """Write a sample photo, or a variant of it; return its path and the fields of its size."""
    image = Image.open(sorted(PHOTOS.glob("*.jpg"))[number]).convert("RGB")
    image = VARIANTS[variant](image) if variant else image
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(encoded(image))
    return str(folder / name), {"width": image.width, "height": image.height}


def ids(groups: list[list[Duplicate]]) -> list[list[str]]:
    return [[duplicate.record.id for duplicate in group] for group in groups]


def fill(store: VectorStore, folder: Path, rng: Rng) -> None:
    """Photos a and b with variants, c without; vectors of lengths from 0.3 to 5, as no model promises a length."""
    rows = []
    for number, (name, variants) in enumerate({"a": ["half", "mirrored"], "b": ["double"], "c": []}.items()):
        vector = unit(rng) * rng.uniform(0.3, 5)
        path, size = photo(folder, f"{name}.jpg", number)
        rows.append(row(name, vector, path, **size))
        for variant in variants:
            path, size = photo(folder, f"{name}-{variant}.jpg", number, variant)
            rows.append(row(f"{name}-{variant}", near(vector, 0.97, rng), path, **size))
    store.upsert(rows)


def test_groups_best_first_and_nothing_is_written(store: VectorStore, tmp_path: Path, rng: Rng) -> None:
    fill(store, tmp_path / "photos", rng)
    store.upsert([Record(id="text", embedding=np.ones(DIM, np.float32), kind="text", caption="a")] * 2)
    before = {path: path.read_bytes() for path in (tmp_path / "photos").iterdir()}
    rows = [(one.id, one.source, one.metadata) for one in store.iterate()]
    seen: list[int] = []
    groups = find_duplicates(store, progress=seen.append)
    # Equal sizes in pixels are ordered by the size of the file.
    assert [set(group) for group in ids(groups)] == [{"a", "a-mirrored", "a-half"}, {"b-double", "b"}]
    assert ids(groups)[0][-1] == "a-half"
    assert ids(groups)[1] == ["b-double", "b"]
    assert all(one.readable and one.record.embedding is None for group in groups for one in group)
    assert groups[1][0].cosine == pytest.approx(1)
    assert groups[1][1].cosine == pytest.approx(0.97, abs=1e-4)
    assert sum(seen) == 6
    assert ids(find_duplicates(store, threshold=0.98)) == []
    assert [(one.id, one.source, one.metadata) for one in store.iterate()] == rows
    assert {path: path.read_bytes() for path in (tmp_path / "photos").iterdir()} == before


def test_equal_vectors_of_photos_that_look_different(local: VectorStore, tmp_path: Path, rng: Rng) -> None:
    vector = unit(rng)
    paths = [photo(tmp_path / "photos", f"{number}.jpg", number)[0] for number in range(3)]
    local.upsert([row(str(number), vector, path) for number, path in enumerate(paths)])
    assert find_duplicates(local) == []


def test_different_vectors_of_photos_that_look_the_same(local: VectorStore, tmp_path: Path, rng: Rng) -> None:
    vector = unit(rng)
    path, _ = photo(tmp_path / "photos", "a.jpg", 0)
    local.upsert([row("1", vector, path), row("2", near(vector, 0.85, rng), path)])
    assert find_duplicates(local) == []
    assert ids(find_duplicates(local, threshold=0.8)) == [["1", "2"]]


def test_photos_that_cannot_be_read_are_grouped_by_vector(local: VectorStore, tmp_path: Path, rng: Rng) -> None:
    vector, other = unit(rng), unit(rng)
    a, size = photo(tmp_path / "photos", "a.jpg", 0)
    b, _ = photo(tmp_path / "photos", "b.jpg", 1)
    damaged = tmp_path / "photos" / "damaged.jpg"
    damaged.write_bytes(Path(a).read_bytes()[:3000])
    local.upsert([
        row("a", vector, a, width=10, height=10),
        row("b", near(vector, 0.995, rng), b),  # another photo, though its vector is near
        row("lost", near(vector, 0.998, rng), **size),  # larger, but it is no longer there
        row("damaged", near(vector, 0.9985, rng), str(damaged)),
        row("far", near(vector, 0.95, rng)),  # near enough if the photo could be compared
        row("x", other), row("y", near(other, 0.99, rng)), row("z", near(other, 0.95, rng)),
    ])  # fmt: skip
    groups = find_duplicates(local)
    assert [(group[0].record.id, {one.record.id for one in group}) for group in groups] == [
        ("a", {"a", "lost", "damaged"}), (groups[1][0].record.id, {"x", "y"}),
    ]  # fmt: skip
    assert [one.readable for one in groups[0]] == [True, False, False]
    assert not any(one.readable for one in groups[1])


def test_one_that_cannot_be_read_never_connects_two_photos(local: VectorStore, tmp_path: Path, rng: Rng) -> None:
    vector = unit(rng)
    rows = [row(f"lost-{n}", vector) for n in range(5)]
    for number, name in enumerate("abc"):
        rows.append(row(name, vector, photo(tmp_path / "photos", f"{name}.jpg", number)[0]))
    local.upsert(rows)
    groups = find_duplicates(local)
    assert all(sum(one.readable for one in group) == 1 for group in groups)
    assert sum(len(group) - 1 for group in groups) == 5


def test_namespaces_are_apart(store: VectorStore, rng: Rng) -> None:
    vector = unit(rng)
    store.upsert([row(f"{name}{n}", vector, namespace=name) for name in ("ann", "bob") for n in range(40)])
    store.upsert([row("alone", vector, namespace="eve")])
    groups = find_duplicates(store)
    assert [len(group) for group in groups] == [40, 40]
    assert all(len({one.record.namespace for one in group}) == 1 for group in groups)


def test_photos_of_another_namespace_hide_nothing(local: VectorStore, rng: Rng) -> None:
    a = unit(rng)
    b = near(a, 0.99, rng)
    local.upsert([row("a", a, namespace="ann"), row("b", b, namespace="ann")])
    local.upsert([row(f"bob-{n}", a + b, namespace="bob") for n in range(600)])
    assert sorted(map(len, find_duplicates(local))) == [2, 600]


def test_groups_larger_than_what_one_search_returns(local: VectorStore, rng: Rng) -> None:
    vector = unit(rng) * 3
    local.upsert([row(f"{n:04}", near(vector, 0.999, rng)) for n in range(700)])
    local.upsert([row("other", unit(rng))])
    (group,) = find_duplicates(local)
    assert len(group) == 700


def test_long_vectors_do_not_hide_a_duplicate(local: VectorStore, rng: Rng) -> None:
    """A hundred rows have a larger inner product with both copies than the copies with each other."""
    vector = unit(rng)
    crowd = [row(f"crowd-{n}", near(vector, 0.6, rng) * 3) for n in range(100)]
    local.upsert([row("a", vector), row("b", near(vector, 0.99, rng)), *crowd])
    nearest = {match.record.id for match in local.search(vector[None].astype(np.float32), 100)[0]}
    assert not nearest & {"a", "b"}
    assert [set(group) for group in ids(find_duplicates(local))] == [{"a", "b"}]


def test_vectors_of_zeros_and_few_rows(local: VectorStore, rng: Rng) -> None:
    local.bind("m", DIM)
    assert find_duplicates(local) == []
    local.upsert([row("zero", np.zeros(DIM)), row("none", np.zeros(DIM))])
    assert find_duplicates(local) == []
    local.upsert([row("a", unit(rng))])
    assert find_duplicates(local, threshold=1) == []


@pytest.mark.parametrize("threshold", [0, -1, 1.01, float("nan")])
def test_thresholds_out_of_range(local: VectorStore, threshold: float) -> None:
    with pytest.raises(UsageError, match=r"^the threshold is .*: give a (cosine|number)"):
        find_duplicates(local, threshold=threshold)
    with pytest.raises(CollectionNotFound, match="ingest photos first"):
        find_duplicates(local)


def test_with_the_packaged_model(local: VectorStore, tmp_path: Path) -> None:
    from ldot_milvus import Ingestor, expand

    kept = ["JPEG of quality 60", "half", "trimmed by 2 %", "brighter", "mirrored"]
    for number, variant in enumerate(kept):
        photo(tmp_path / "photos", f"{number}.jpg", number)
        photo(tmp_path / "photos", f"{number}-copy.jpg", number, variant)
    Ingestor(local, "ldot-mini", device="cpu").ingest(list(expand([str(tmp_path / "photos")])))
    found = sorted(sorted(Path(one.record.source).stem for one in group) for group in find_duplicates(local))
    assert found == [[str(number), f"{number}-copy"] for number in range(len(kept))]


@pytest.fixture
def filled(local: VectorStore, tmp_path: Path, rng: Rng) -> Mapping[str, str]:
    fill(local, tmp_path / "photos", rng)
    vector = unit(rng)
    local.upsert([row("x", vector, "odd\n\x1b[31m<b>.jpg"), row("y", vector, "gone/y.jpg")])
    return {"LDOT_STORE": local.address, "LDOT_COLLECTION": "photos"}


def test_the_command(run: Run, filled: Mapping[str, str], tmp_path: Path) -> None:
    done = run("ldot", "duplicates", "--html", "out.html", env=dict(filled))
    assert done.returncode == 0, done.stderr
    assert "3 groups with 7 of 8 photos" in done.stdout
    assert "odd\\n\\x1b[31m<b>.jpg  (cannot be read: compared by its vector alone)" in done.stdout
    assert all(line.isprintable() for line in done.stdout.splitlines())
    text = (tmp_path / "out.html").read_text()
    assert text.count("<h2>") == 3
    assert text.count("data:image/jpeg;base64,") == 5
    assert text.count("compared by its vector alone") == 2
    assert "<b>.jpg" not in text
    assert "\x1b" not in text

    as_json = run("ldot", "duplicates", "--json", "--threshold", "0.98", env=dict(filled))
    result = json.loads(as_json.stdout)
    assert (result["threshold"], result["photos"], len(result["groups"])) == (0.98, 8, 1)
    assert result["groups"][0]["photos"][1].keys() == {
        "id", "source", "namespace", "width", "height", "cosine", "readable",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--threshold", "2"], "the threshold is 2.0"),
        (["--collection", "nothing"], "enqueue"),
        (["--html", "no/such/folder.html"], "folder.html"),
        (["--store", "ftp://x"], "ftp://x"),
    ],
)
def test_a_mistake_is_one_line(run: Run, filled: Mapping[str, str], arguments: list[str], word: str) -> None:
    done = run("ldot", "duplicates", *arguments, env=dict(filled))
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert word in line


def test_a_page_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MAX_OF_GROUP", 3)
    monkeypatch.setattr(page, "MAX_PHOTOS", 5)
    groups = [
        [Duplicate(Record(id=f"{group}-{n}", width=3, height=2), 1.0, False) for n in range(size)]
        for group, size in enumerate((5, 2, 2, 2))
    ]
    page.write_groups(tmp_path / "p.html", groups)
    text = (tmp_path / "p.html").read_text()
    assert text.count('<li class="card"') == 5
    assert "2 further photos are not on this page" in text
    assert "2 further groups are not on this page" in text
    page.write_groups(tmp_path / "p.html", [])
    assert "None found." in (tmp_path / "p.html").read_text()
