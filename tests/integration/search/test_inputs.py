"""Every entry of the Python API takes images, texts, counts and fields in the forms in which people hold them."""

from __future__ import annotations

import base64
import datetime as dt
import io
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from ldot_milvus import Ingestor, Record, Regions, Retriever, Source, expand, load_embedder, load_metadata, open_store
from ldot_milvus.errors import InputError, LdotError, UsageError
from ldot_milvus.ingest.chunks import chunks_of
from ldot_milvus.integrations.langchain import LightningDOTEmbeddings
from ldot_milvus.models.loading import load_reranker
from ldot_milvus.models.passes import image_features
from ldot_milvus.regions.bottom_up import BottomUpExtractor
from ldot_milvus.regions.grid import GridExtractor
from ldot_milvus.search.retriever import Hit
from ldot_milvus.stores import VectorStore
from tests import families
from tests.conftest import ROOT, make_photo

DATA = make_photo(3, format="PNG")
PIXELS = np.asarray(Image.open(io.BytesIO(DATA)))

FORMS: dict[str, Callable[[Path], Any]] = {
    "str": str, "Path": Path, "file URL": lambda path: path.as_uri(), "bytes": lambda path: DATA,
    "bytearray": lambda path: bytearray(DATA), "memoryview": lambda path: memoryview(DATA),
    "BytesIO": lambda path: io.BytesIO(DATA), "open file": lambda path: path.open("rb"),
    "PIL": lambda path: Image.open(path),
    "data URL": lambda path: "data:image/png;base64," + base64.b64encode(DATA).decode(), "HWC": lambda path: PIXELS,
    "CHW": lambda path: PIXELS.transpose(2, 0, 1), "floats": lambda path: PIXELS / 255,
    "tensor": lambda path: torch.from_numpy(PIXELS.transpose(2, 0, 1) / 255).requires_grad_(),
}  # fmt: skip
"""One photo of which no form loses anything."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inputs") / "a.png"
    path.write_bytes(DATA)
    return path


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_embedder(str(families.siglip(tmp_path_factory.mktemp("siglip"))), device="cpu")


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_embedder(str(families.blip(tmp_path_factory.mktemp("blip"))), device="cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_model: str, path: Path) -> Iterator[VectorStore]:
    folder = tmp_path_factory.mktemp("store")
    for seed in range(8):
        (folder / f"{seed}.png").write_bytes(make_photo(seed, format="PNG"))
    with open_store(f"faiss:{folder / 'store'}", "photos") as store:
        assert Ingestor(store, tiny_model).ingest(expand([folder])).added == 8  # a Path, and a generator of sources
        yield store


@pytest.fixture
def retriever(tiny: Any, store: VectorStore) -> Retriever:
    return Retriever(tiny, store)


@pytest.mark.parametrize("form", FORMS)
def test_images_at_every_entry(
    form: str, path: Path, tiny: Any, siglip: Any, blip: Any, store: VectorStore, retriever: Retriever
) -> None:
    def given() -> Any:
        return FORMS[form](path)

    for embedder in (tiny, siglip, blip):
        expected = embedder.encode_images([path])
        assert np.array_equal(embedder.encode_images([given()]), expected)
        assert np.array_equal(embedder.encode_images(iter([given()])), expected)
        assert np.array_equal(embedder.encode_features(embedder.image_features([given()])), expected)
    second = load_reranker(str(blip.files.folder), siglip)  # reads the pixels itself, after the embedder
    features, own = image_features(siglip, second, [given()])
    assert np.array_equal(siglip.encode_features(features), siglip.encode_images([path]))
    assert second is not None
    assert np.array_equal(second.keep(own)[0]["states"], second.keep(blip.image_features([path]))[0]["states"])

    (hit,) = retriever.search(image=given(), k=1)
    assert Path(hit.source).name == "3.png"
    part = Path(path) if isinstance(given(), str) else given()  # a str is a text there
    assert ids(retriever.search([(1.0, part)])) == ids(retriever.search(image=path))
    if isinstance(given(), str | Path):
        embeddings = LightningDOTEmbeddings(tiny)
        assert embeddings.embed_image([given()]) == embeddings.embed_image([str(path)])


def ids(hits: list[Hit]) -> list[str]:
    return [hit.id for hit in hits]


@pytest.mark.parametrize("form", ["str", "BytesIO", "PIL", "HWC", "tensor", "data URL"])
def test_images_at_the_extractors(form: str, path: Path, tiny: Any) -> None:
    bottom_up = BottomUpExtractor.from_pretrained(ROOT / "tests" / "golden" / "bottom_up")
    grid = tiny.bundle.extractor
    assert isinstance(grid, GridExtractor)
    for extractor in (bottom_up, grid):
        (expected,) = extractor([Image.open(path).convert("RGB")])
        (got,) = extractor([FORMS[form](path)])
        assert np.array_equal(got.features, expected.features)
        assert extractor([]) == []
    alone = bottom_up(FORMS[form](path))
    assert isinstance(alone, Regions)
    assert len(bottom_up(np.stack([PIXELS, PIXELS]))) == 2
    with pytest.raises(UsageError, match=r"give a list of images, not 5 \(int\)"):
        bottom_up(5)


def test_batches_and_series_of_images(tiny: Any, siglip: Any, path: Path) -> None:
    for embedder in (tiny, siglip):
        expected = embedder.encode_images([path, path])
        for images in (
            np.stack([PIXELS, PIXELS]), torch.from_numpy(np.stack([PIXELS, PIXELS]).transpose(0, 3, 1, 2)),
            pandas.Series([str(path), path]), np.array([str(path), str(path)]), (image for image in (PIXELS, DATA)),
        ):  # fmt: skip
            assert np.allclose(embedder.encode_images(images), expected, atol=1e-5)
        assert embedder.encode_images([]).shape == embedder.encode_texts([]).shape == (0, embedder.dim)
        assert embedder.encode_images(iter(())).dtype == np.float32
        for one in (str(path), path, DATA, PIXELS, Image.open(path), io.BytesIO(DATA)):
            with pytest.raises(UsageError, match="give a list of images, not "):
                embedder.encode_images(one)


def test_texts_at_every_entry(tiny: Any, siglip: Any, blip: Any, retriever: Retriever) -> None:
    texts = ["a dog", "a cat"]
    for embedder in (tiny, siglip, blip):
        expected = embedder.encode_texts(texts)
        for given in (
            tuple(texts),
            iter(texts),
            np.array(texts),
            pandas.Series(texts),
            pandas.Series(texts, dtype="string"),
        ):
            assert np.array_equal(embedder.encode_texts(given), expected)
        for wrong in ("a dog", b"a dog", None, 5, ["a", 5], [b"a"], ["\ud83d"], [""], [None], [float("nan")], {"a": 1}):
            with pytest.raises(UsageError):
                embedder.encode_texts(wrong)
    assert ids(retriever.search(np.str_("a dog"))) == ids(retriever.search("a dog"))
    for wrong, words in (
        (5, "search takes a text or a list"), (b"a dog", "not 5 bytes"),
        (["a dog"], "part 1 of the query is no pair but 'a dog'"),
        ("dog \ud83d", "half a surrogate pair"), (np.array([[1.0, 2.0]]), "search takes a text"),
        ({"a": 1}, "not a dict of 1"),
        ([("a dog", 1)], "the weight of part 1 of the query is 'a dog'"), ([(True, "a")], "the weight of part 1"),
    ):  # fmt: skip
        with pytest.raises(UsageError) as caught:
            retriever.search(wrong)
        assert words in str(caught.value)


def test_numbers_of_a_search(retriever: Retriever) -> None:
    whole = retriever.search("a dog", k=3, rerank=2)
    for three, two in ((np.int64(3), np.int32(2)), (torch.tensor(3), np.uint8(2))):
        assert retriever.search("a dog", k=three, rerank=two) == whole
    parts = [(2, "a dog"), (-0.5, "a cat")]
    for weights in (
        (np.float32(2), np.float64(-0.5)),
        (Decimal(2), Decimal("-0.5")),
        (np.int64(2), torch.tensor(-0.5)),
    ):
        given = [(weight, text) for weight, (_, text) in zip(weights, parts, strict=True)]
        assert retriever.search(given) == retriever.search(parts)
    assert retriever.search(part for part in parts) == retriever.search(parts)
    for arguments in ({"k": 3.0}, {"k": True}, {"k": "3"}, {"k": None}, {"k": 0}, {"rerank": 2.0}, {"rerank": -1}):
        with pytest.raises(UsageError, match="give a whole number of at least"):
            retriever.search("a dog", **arguments)
    for minimum in ("0.5", True, float("nan"), 2):
        with pytest.raises(UsageError, match=r"min_probability is .*: give a number from 0 to 1"):
            retriever.search("a dog", min_probability=minimum)


@pytest.mark.parametrize(
    "image",
    [None, 5, [DATA], {"path": "a"}, np.zeros((3, 3, 3)), io.StringIO("x"), "nowhere.jpg"],
    ids=lambda image: type(image).__name__,
)
def test_what_is_no_query_image(image: Any, retriever: Retriever) -> None:
    with pytest.raises(LdotError) as caught:
        retriever.search(image=image)
    assert str(caught.value).isprintable()
    if image is not None:
        with pytest.raises(InputError):
            retriever.search([(1.0, Path(image) if isinstance(image, str) else image)])


FIELDS = {
    "taken": dt.datetime(2026, 11, 26, 22, 5, tzinfo=dt.timezone.utc), "day": dt.date(2026, 11, 26),
    "tags": {"snow", "dog"},
    "size": (np.int64(3), np.float32(0.5)), "price": Decimal("9.90"), "camera": uuid.UUID(int=5), "place": Path("/a"),
}  # fmt: skip
PLAIN = {
    "taken": "2026-11-26T22:05:00+00:00", "day": "2026-11-26", "tags": ["dog", "snow"], "size": [3, 0.5], "price": 9.9,
    "camera": "00000000-0000-0000-0000-000000000005", "place": "/a",
}  # fmt: skip


def test_fields_of_rows(tmp_path: Path) -> None:
    """A row that is read is the row that was written, in plain values, whatever the types were."""
    id = uuid.UUID(int=7)
    with open_store(f"faiss:{tmp_path}", "rows") as store:
        row = Record(
            id=id, embedding=torch.ones(4, requires_grad=True), width=np.int64(3), height=np.uint8(2), metadata=FIELDS
        )
        assert store.upsert(one for one in [row]) == 1
        (read,) = store.get([id], with_embeddings=True)
        assert (read.id, read.width, read.height, read.metadata) == (str(id), 3, 2, PLAIN)
        assert read.embedding is not None
        assert read.embedding.tolist() == [1.0] * 4
        assert store.update([Record(id=id, caption=np.str_("a dog"), metadata={"n": np.int64(1)})]) == 1
        assert store.get(np.array([str(id)]))[0].metadata == {"n": 1}
        assert len(store.search(np.ones((1, 4)), np.int64(1))[0]) == 1
        assert len(list(store.iterate(batch_size=np.int64(1)))) == 1
        for given, words in (
            (Record(id=7), "an id is a string, not 7 (int)"), (Record(id=b"7"), "an id is a string, not 1 bytes"),
            (Record(id="a", width=1.5), "width is 1.5 (float): give a whole number"),
            (Record(id="a", metadata={"x": b""}), "metadata.x: 0 bytes (bytes) is not a JSON value"),
            (Record(id="a", metadata=[1]), "metadata is a dictionary, not a list of 1"),
            ("a", "expected a Record, not 'a'"),
        ):  # fmt: skip
            with pytest.raises(UsageError) as caught:
                store.update([given])
            assert words in str(caught.value)
        with pytest.raises(UsageError, match=r"give a list of records, not a ldot_milvus\.Record"):
            store.upsert(row)
        assert store.delete([id]) == 1


def test_ingestion_in_python(tmp_path: Path, tiny_model: str) -> None:
    """Paths of any kind, generators of sources, and fields that are JSON values only after they are converted."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(3):
        (folder / f"{seed}.jpg").write_bytes(make_photo(seed))
    (tmp_path / "m.jsonl").write_text('{"file": "0.jpg", "caption": "a dog"}\n')
    with open_store(f"faiss:{tmp_path / 'store'}", "photos") as store:
        ingestor = Ingestor(store, tiny_model)
        assert ingestor.ingest(expand(iter([folder]), metadata=load_metadata(tmp_path / "m.jsonl"))).added == 3
        sources = [Source(folder / "1.jpg", metadata=FIELDS)]
        assert ingestor.ingest(sources).updated == 1
        assert ingestor.ingest(sources).unchanged == 1
        (row,) = store.iterate({"metadata.price": 9.9})
        assert PLAIN.items() <= row.metadata.items()
        assert sources[0].to_dict()["metadata"] == PLAIN  # as it is sent to a worker
        for wrong in (str(folder), [str(folder)], [folder / "1.jpg"], None):
            with pytest.raises(
                UsageError, match=r"give a list of sources, not|is not a Source: expand\(paths\) makes them"
            ):
                ingestor.ingest(wrong)
    for wrong in (str(folder), folder, None, b"photos"):
        with pytest.raises(UsageError, match="give a list of paths, not "):
            expand(wrong)
    with pytest.raises(UsageError, match=r"5 \(int\) is not a path"):
        expand([5])
    with pytest.raises(UsageError, match="the chunk size is 0"):
        next(chunks_of(None, [], 0))
