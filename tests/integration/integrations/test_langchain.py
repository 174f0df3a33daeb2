"""The LangChain retriever and embeddings, as programs hold them: changed, copied, pickled, configured, shared."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.runnables import ConfigurableField

from ldot_milvus import LightningDOTEmbedder, open_store
from ldot_milvus.errors import CollectionNotFound, InputError, UsageError
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.integrations.langchain import LightningDOTEmbeddings, LightningDOTRetriever
from ldot_milvus.models.calibration import Calibration, write_calibration
from ldot_milvus.models.registry import find_model
from ldot_milvus.sources import expand
from tests.conftest import make_photo
from tests.integration.integrations.conftest import Photos

QUERY = "a red square"


@pytest.fixture
def retriever(photos: Photos) -> LightningDOTRetriever:
    return LightningDOTRetriever(**photos.fields, k=3, rerank=5)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> str:
    """Another store, whose collection of the same name has one photo."""
    folder = tmp_path_factory.mktemp("other")
    (folder / "other.jpg").write_bytes(make_photo(9))
    with open_store(f"faiss:{folder / 'store'}", "photos") as store:
        Ingestor(store, tiny_model).ingest(list(expand([str(folder / "other.jpg")])))
    return f"faiss:{folder / 'store'}"


def names(documents: list[Document]) -> list[str]:
    return [os.path.basename(document.metadata["source"]) for document in documents]


async def test_sync_and_async_give_the_same(retriever: LightningDOTRetriever) -> None:
    documents = retriever.invoke(QUERY)
    assert await retriever.ainvoke(QUERY) == documents
    assert retriever.batch([QUERY, "snow"])[0] == documents
    assert (await retriever.abatch([QUERY]))[0] == documents
    assert len(documents) == 3
    scores = [document.metadata["rerank_score"] for document in documents]
    assert scores == sorted(scores, reverse=True)


def test_the_photos_own_fields_are_apart_from_ours(retriever: LightningDOTRetriever, photos: Photos) -> None:
    for document in retriever.invoke(QUERY, k=6):
        about = document.metadata
        seed = int(Path(about["source"]).stem)
        assert about["source"] == str(photos.folder / f"{seed}.jpg")
        assert about["metadata"].items() >= {"source": "flickr", "score": "five stars", "width": "wide"}.items()
        assert (about["width"], about["height"]) == ((1600, 1200) if seed > 3 else (80, 60))
        assert about["namespace"] == ("anna" if seed % 2 else "bob")
        assert about["kind"] == "image"
        assert isinstance(about["score"], float)
        assert document.page_content == (about["caption"] or about["source"])
        json.dumps(about)


def test_a_call_overrides_the_fields(retriever: LightningDOTRetriever) -> None:
    assert len(retriever.invoke(QUERY, k=1)) == 1
    plain = retriever.invoke(QUERY, k=6, rerank=0)
    assert len(plain) == 6
    assert {document.metadata["rerank_score"] for document in plain} == {None}
    assert retriever.invoke(QUERY, filter={"width": {"$gt": 10_000}}) == []
    assert len(retriever.bind(k=2).invoke(QUERY)) == 2


@pytest.mark.parametrize(
    "unknown",
    [
        {"filters": {"metadata.album": 0}}, {"top_k": 1}, {"collection_name": "nope"}, {"search_type": "mmr"},
        {"search_kwargs": {"filters": {"metadata.album": 0}}}, {"search_kwargs": {"store": "faiss:./x"}},
    ],
)  # fmt: skip
def test_unknown_arguments_are_refused_wherever_they_are_given(
    photos: Photos, retriever: LightningDOTRetriever, unknown: dict[str, Any]
) -> None:
    name = next(iter(unknown.get("search_kwargs", unknown)))
    with pytest.raises(UsageError, match=f"takes no argument '{name}'"):
        LightningDOTRetriever(**photos.fields, **unknown)
    with pytest.raises(UsageError, match=f"takes no argument '{name}'"):
        retriever.invoke(QUERY, **unknown)
    with pytest.raises(UsageError, match=f"takes no argument '{name}'"):
        asyncio.run(retriever.ainvoke(QUERY, **unknown))
    if "search_kwargs" in unknown:
        retriever.search_kwargs = unknown["search_kwargs"]
        with pytest.raises(UsageError, match=f"takes no argument '{name}'"):
            retriever.invoke(QUERY)
    else:
        with pytest.raises(UsageError, match=f"takes no argument '{name}'"):
            retriever.model_copy(update=unknown)


def test_fields_of_the_constructor_are_no_arguments_of_a_call(retriever: LightningDOTRetriever) -> None:
    with pytest.raises(UsageError, match="takes no argument 'collection'"):
        retriever.invoke(QUERY, collection="other")


def test_search_kwargs_are_as_in_langchains_retrievers(photos: Photos) -> None:
    kwargs = {"k": 2, "filter": {"metadata.album": 1}}
    retriever = LightningDOTRetriever(**photos.fields, k=5, search_kwargs=kwargs)
    found = retriever.invoke(QUERY)
    assert len(found) == 2
    assert {document.metadata["metadata"]["album"] for document in found} == {1}
    assert len(retriever.invoke(QUERY, k=1)) == 1
    assert len(retriever.invoke(QUERY, search_kwargs={"k": 3})) == 3
    retriever.search_kwargs["k"] = 1
    assert len(retriever.invoke(QUERY)) == 1
    with pytest.raises(UsageError, match="no calibration"):
        LightningDOTRetriever(**photos.fields, search_kwargs={"score_threshold": 0.5}).invoke(QUERY)


def test_a_namespace_holds_whatever_the_filter_says(photos: Photos, retriever: LightningDOTRetriever) -> None:
    anna = LightningDOTRetriever(**photos.fields, namespace="anna", k=6)
    assert {document.metadata["namespace"] for document in anna.invoke(QUERY)} == {"anna"}
    for filter in ({}, {"namespace": "bob"}, {"$or": [{"namespace": "bob"}, {"namespace": "anna"}]}):
        assert {document.metadata["namespace"] for document in anna.invoke(QUERY, filter=filter)} <= {"anna"}
    assert len(retriever.invoke(QUERY, k=6)) == 6


# Every way to get a retriever with another field, of one that was used or not.
CHANGES: dict[str, Callable[[LightningDOTRetriever, dict[str, Any]], Any]] = {
    "assigned": lambda one, fields: [setattr(one, name, value) for name, value in fields.items()] and one,
    "model_copy": lambda one, fields: one.model_copy(update=fields),
    "model_copy(deep)": lambda one, fields: one.model_copy(update=fields, deep=True),
    "copy": lambda one, fields: CHANGES["assigned"](copy.copy(one), fields),
    "deepcopy": lambda one, fields: CHANGES["assigned"](copy.deepcopy(one), fields),
    "pickle": lambda one, fields: CHANGES["assigned"](pickle.loads(pickle.dumps(one)), fields),
    "configured": lambda one, fields: one.configurable_fields(
        **{name: ConfigurableField(id=name) for name in fields}
    ).with_config(configurable=fields),
}


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize("objects", [True, False])
@pytest.mark.parametrize("way", CHANGES)
def test_the_answer_is_always_that_of_the_fields(
    photos: Photos, other: str, tiny: LightningDOTEmbedder, way: str, objects: bool, used: bool
) -> None:
    fields = {"store": open_store(photos.address, "photos"), "model": tiny} if objects else photos.fields
    retriever = LightningDOTRetriever(**fields, k=6)
    if used:
        retriever.invoke(QUERY)
    changed = CHANGES[way](retriever, {"store": other, "collection": "photos"})
    assert names(changed.invoke(QUERY)) == ["other.jpg"]
    if way != "assigned":
        assert len(retriever.invoke(QUERY)) == 6
        assert retriever == LightningDOTRetriever(**fields, k=6)
    store = open_store(other, "photos")
    assert names(CHANGES[way](retriever, {"store": store}).invoke(QUERY)) == ["other.jpg"]


def test_deep_copies_share_what_is_open_and_nothing_else(photos: Photos, tiny: LightningDOTEmbedder) -> None:
    store = open_store(photos.address, "photos")
    retriever = LightningDOTRetriever(store=store, model=tiny, filter={"width": 80})
    copied = copy.deepcopy(retriever)
    assert copied.store is store
    assert copied.model is tiny
    assert copied.filter == retriever.filter
    assert copied.filter is not retriever.filter


@pytest.mark.parametrize("objects", [True, False])
def test_a_pickle_answers_the_same_in_another_process(
    photos: Photos, tiny: LightningDOTEmbedder, tmp_path: Path, objects: bool
) -> None:
    fields = {"store": open_store(photos.address, "photos"), "model": tiny} if objects else photos.fields
    retriever = LightningDOTRetriever(**fields, k=4)
    expected = names(retriever.invoke(QUERY))
    data = pickle.dumps(retriever)
    assert len(data) < 2000
    (tmp_path / "retriever").write_bytes(data)
    program = (
        "import pickle, sys; r = pickle.load(open(sys.argv[1], 'rb'));"
        f"print(*[d.metadata['source'].rpartition('/')[2] for d in r.invoke({QUERY!r})])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "retriever")], capture_output=True, text=True, timeout=200
    )
    assert done.stdout.split() == expected, done.stderr


def test_the_model_is_loaded_once_by_many_first_calls(photos: Photos, loads: list[str]) -> None:
    retriever = LightningDOTRetriever(**photos.fields, k=2)
    assert [len(found) for found in retriever.batch([QUERY] * 8)] == [2] * 8

    async def at_once() -> None:
        several = [LightningDOTRetriever(**photos.fields, k=2) for _ in range(4)]
        await asyncio.gather(*[one.ainvoke(QUERY) for one in several])
        await several[0].abatch([QUERY] * 4)

    asyncio.run(at_once())
    with ThreadPoolExecutor(8) as threads:
        made = (LightningDOTRetriever(**photos.fields) for _ in range(8))
        list(threads.map(lambda one: one.invoke(QUERY), made))
    configurable = retriever.configurable_fields(k=ConfigurableField(id="k"))
    for k in (1, 2):
        assert len(configurable.invoke(QUERY, config={"configurable": {"k": k}})) == k
    LightningDOTEmbeddings(photos.model).embed_query(QUERY)
    assert loads == [photos.model]


def test_a_model_whose_files_changed_is_loaded_anew(photos: Photos, loads: list[str], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(photos.model, tmp_path / "model"))
    embeddings = LightningDOTEmbeddings(str(folder))
    first = embeddings.embed_query(QUERY)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_text_length": 8}))
    assert len(embeddings.embed_query(QUERY)) == len(first)
    assert loads == [str(folder)] * 2


def test_settings_count_where_a_field_is_none(photos: Photos, other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    retriever = LightningDOTRetriever(k=6)
    monkeypatch.setenv("LDOT_STORE", photos.address)
    monkeypatch.setenv("LDOT_COLLECTION", "photos")
    monkeypatch.setenv("LDOT_MODEL", photos.model)
    assert len(retriever.invoke(QUERY)) == 6
    monkeypatch.setenv("LDOT_STORE", other)
    assert names(retriever.invoke(QUERY)) == ["other.jpg"]
    monkeypatch.setenv("LDOT_COLLECTION", "nope")
    with pytest.raises(CollectionNotFound, match="nope"):
        retriever.invoke(QUERY)


async def test_neither_loading_nor_encoding_stops_the_event_loop(photos: Photos, loads: list[str]) -> None:
    """Of the processor time, so that other programs on the machine do not count; the best of three tries."""
    stops: list[float] = []
    for _ in range(3):
        longest = 0.0
        retriever = LightningDOTRetriever(**photos.fields, k=2)
        question = asyncio.gather(*[asyncio.create_task(retriever.ainvoke(QUERY)) for _ in range(4)])
        last = time.process_time()
        while not question.done():
            await asyncio.sleep(0.002)
            now = time.process_time()
            longest, last = max(longest, now - last), now
        await question
        stops.append(longest)
    assert loads == [photos.model]
    assert min(stops) < 0.05


FIRST_QUESTION = """
import asyncio, sys, time
from ldot_milvus import LightningDOTRetriever
retriever = LightningDOTRetriever(store=sys.argv[1], collection="photos", model=sys.argv[2])

async def main():
    longest, question = 0.0, asyncio.create_task(retriever.ainvoke("a bus"))
    last = time.process_time()
    while not question.done():
        await asyncio.sleep(0.002)
        now = time.process_time()
        longest, last = max(longest, now - last), now
    print(len(await question), longest)

assert "torch" not in sys.modules
asyncio.run(main())
"""


@pytest.mark.slow
def test_a_process_that_has_loaded_nothing_answers_without_stopping_its_event_loop(photos: Photos) -> None:
    """Importing torch stopped it for a second, and the garbage collector for half a second several times.

    Processor time of the process, and the best of three, because a busy machine stops the loop too.
    """
    stops = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", FIRST_QUESTION, photos.address, photos.model],
            capture_output=True, text=True, timeout=200,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        count, longest = done.stdout.split()
        assert count == "5"
        stops.append(float(longest))
    assert min(stops) < 0.25, stops


def test_images_as_queries(photos: Photos, retriever: LightningDOTRetriever) -> None:
    """Whatever the form, the photo itself is found first."""
    import base64

    from langchain_core.messages import HumanMessage
    from PIL import Image

    path = photos.folder / "2.jpg"
    encoded = base64.b64encode(path.read_bytes()).decode()
    data_url = f"data:image/jpeg;base64,{encoded}"
    block = {"type": "image", "base64": encoded, "mime_type": "image/jpeg"}
    openai = {"type": "image_url", "image_url": {"url": data_url}}
    forms: list[Any] = [
        path, path.read_bytes(), Image.open(path), data_url, block, openai, {"type": "image", "url": data_url},
        [block], HumanMessage([block]), HumanMessage([{"type": "text", "text": " "}, openai]),
    ]  # fmt: skip
    expected = retriever.invoke(path, rerank=0)
    for form in forms:
        found = retriever.invoke(form, rerank=0)
        assert [one.id for one in found] == [one.id for one in expected], str(form)[:80]
        assert [one.metadata["score"] for one in found] == pytest.approx(
            [one.metadata["score"] for one in expected], rel=1e-4
        )
    assert retriever.batch([data_url], rerank=0) == [retriever.invoke(data_url, rerank=0)]


def test_texts_with_images_are_composed(photos: Photos, retriever: LightningDOTRetriever) -> None:
    from langchain_core.messages import HumanMessage

    photo = (photos.folder / "2.jpg").read_bytes()
    message = HumanMessage([{"type": "text", "text": QUERY}, {"type": "image", "base64": _b64(photo)}])
    expected = retriever.retriever.search([(1.0, QUERY), (1.0, photo)], k=3, rerank=5)
    assert [one.id for one in retriever.invoke(message)] == [hit.id for hit in expected]
    assert retriever.invoke(HumanMessage(QUERY)) == retriever.invoke(QUERY)


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        ("", UsageError, "empty"), ([], UsageError, "the query is empty"), ({"type": "audio"}, UsageError, "'audio'"),
        ({"type": "image", "base64": "%%"}, InputError, "not base64"),
        ({"type": "image", "file_id": "f1"}, UsageError, "with a file_id cannot be read here"),
        ({"type": "image", "url": "https://x/a.jpg"}, UsageError, "with a url cannot be read here"),
        ([1, 2], UsageError, "has content blocks"), ({"question": "dogs"}, UsageError, "content block"),
        (b"no photo", InputError, "image"), (Path("nowhere.jpg"), InputError, "nowhere.jpg"),
    ],
)  # fmt: skip
def test_queries_that_are_refused(
    retriever: LightningDOTRetriever, query: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        retriever.invoke(query, rerank=0)
    assert "\n" not in str(caught.value)


def test_content_of_the_documents(retriever: LightningDOTRetriever, photos: Photos) -> None:
    from tests.integration.integrations.test_langchain_content import opened

    by_source = retriever.invoke(QUERY, k=6, content="source")
    assert [document.page_content for document in by_source] == [one.metadata["source"] for one in by_source]
    pictures = retriever.model_copy(update={"longest_side": 200}).invoke(QUERY, k=6, content="image")
    for document in pictures:
        picture = opened(document.metadata["image"])
        assert max(picture.size) == (200 if document.metadata["width"] > 80 else 80)
        assert document.page_content == (document.metadata["caption"] or document.metadata["source"])
    with pytest.raises(UsageError, match="content is 'pixels'"):
        retriever.invoke(QUERY, content="pixels")


def test_least_probability(retriever: LightningDOTRetriever, photos: Photos, tmp_path: Path) -> None:
    assert {document.metadata["probability"] for document in retriever.invoke(QUERY)} == {None}
    with pytest.raises(UsageError, match="no calibration"):
        retriever.invoke(QUERY, min_probability=0.5)
    folder = Path(shutil.copytree(photos.model, tmp_path / "model"))
    own = find_model(str(folder)).own_reranker()
    scores = [document.metadata["rerank_score"] for document in retriever.invoke(QUERY, k=5)]
    write_calibration(own.folder, Calibration(1.0, -(scores[1] + scores[2]) / 2), own.fitted_for, {})
    likely = LightningDOTRetriever(
        **{**photos.fields, "model": str(folder)}, k=5, rerank=5, search_kwargs={"score_threshold": 0.5}
    )
    documents = likely.invoke(QUERY)
    assert [document.metadata["rerank_score"] for document in documents] == pytest.approx(scores[:2])
    assert all(document.metadata["probability"] >= 0.5 for document in documents)
    assert likely.invoke(QUERY, min_probability=1) == []
    assert len(likely.invoke(QUERY, min_probability=None)) == 5


def test_traces_name_what_is_in_effect(
    photos: Photos, tiny: LightningDOTEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def traced(**fields: Any) -> tuple[Any, ...]:
        params = LightningDOTRetriever(**fields)._get_ls_params()
        return params["ls_vector_store_provider"], params["ls_embedding_model"]

    monkeypatch.setenv("LDOT_STORE", "http://user:secret@host:19530")
    monkeypatch.setenv("LDOT_MODEL", "some/model")
    assert traced() == ("Milvus", "some/model")
    assert traced(store="./x.db", model="ldot-mini") == ("Milvus", "ldot-mini")
    assert traced(store=photos.address) == ("FAISS", "some/model")
    assert traced(store=open_store(photos.address), model=tiny) == ("FAISS", photos.model)
    assert traced(store="nonsense") == ("unknown", "some/model")
    named = LightningDOTRetriever(name="photos")._get_ls_params()
    assert named["ls_embedding_provider"] == "LightningDOTEmbeddings"
    assert named["ls_retriever_name"] == "photos"


def test_lazy_names_are_the_same_classes() -> None:
    import integrations.langchain as alias
    import ldot_milvus
    import ldot_milvus.integrations.langchain as package

    assert ldot_milvus.LightningDOTRetriever is LightningDOTRetriever
    assert alias.__all__ == package.__all__
    assert all(getattr(alias, name) is getattr(package, name) for name in alias.__all__)


def test_embeddings(photos: Photos, tiny: LightningDOTEmbedder) -> None:
    embeddings = LightningDOTEmbeddings(photos.model)
    (vector,) = embeddings.embed_image([str(photos.folder / "1.jpg")])
    assert len(vector) == 16
    assert embeddings.embed_documents([]) == []
    for same in (pickle.loads(pickle.dumps(embeddings)), copy.deepcopy(embeddings), LightningDOTEmbeddings(tiny)):
        assert same.embed_query(QUERY) == pytest.approx(embeddings.embed_query(QUERY), rel=1e-5)
    with pytest.raises(UsageError, match="takes no argument 'model_nam'"):
        LightningDOTEmbeddings(model_nam="ldot-mini")
    with pytest.raises(UsageError, match="nowhere"):
        LightningDOTEmbeddings("./nowhere")


def _b64(data: bytes) -> str:
    import base64

    return base64.b64encode(data).decode()
