"""A user's program that uses every public name. ``tests/unit/test_typing.py`` checks it with mypy, as a user would.

``assert_type`` says what the types are, so that none of them becomes ``Any`` unnoticed. Nothing here is executed.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from haystack import Document as HaystackDocument
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.tools import BaseTool
from llama_index.core.schema import NodeWithScore
from mcp.server.lowlevel import Server
from numpy.typing import NDArray
from PIL import Image
from typing_extensions import assert_type

import ldot_milvus
from ldot_milvus import (
    Client,
    CollectionNotFound,
    Embedder,
    Failure,
    FilterError,
    Hit,
    Ingestor,
    InputError,
    LdotError,
    LightningDOTEmbedder,
    LightningDOTEmbeddings,
    LightningDOTRetriever,
    Match,
    ModelError,
    ModelMismatch,
    Record,
    Regions,
    RegionStoreNotFound,
    Report,
    Reranker,
    Retriever,
    RowNotFound,
    Settings,
    Source,
    StoreError,
    TrainingError,
    UnknownField,
    UsageError,
    VectorStore,
    expand,
    load_embedder,
    load_metadata,
    load_model,
    load_reranker,
    open_store,
    register_family,
    register_store,
)
from ldot_milvus.images import ImageSource, Photo, decode, open_image
from ldot_milvus.ingest.new_reranker import RegionReport, add_region_data
from ldot_milvus.integrations.haystack import LightningDOTRetriever as HaystackRetriever
from ldot_milvus.integrations.langchain import (
    LightningDOTCompressor,
    LightningDOTTool,
    LightningDOTVectorStore,
    Query,
    photo_blocks,
)
from ldot_milvus.integrations.llama_index import LightningDOTRetriever as LlamaIndexRetriever
from ldot_milvus.integrations.mcp import photo_server
from ldot_milvus.integrations.pymilvus_model import LightningDOTEmbeddingFunction, LightningDOTRerankFunction
from ldot_milvus.model import (
    CrossAttentionReranker,
    LightningDOT,
    LightningDOTConfig,
    LightningDOTForPreTraining,
    RerankerConfig,
)
from ldot_milvus.models.base import (
    ImageFeatures,
    ImageInput,
    KeptImage,
    ModelFiles,
    RerankerFiles,
    SecondPassReranker,
    Text,
)
from ldot_milvus.models.calibration import Calibrated, Calibration, MatchingReranker
from ldot_milvus.models.edje.configuration import EdjeConfig
from ldot_milvus.models.edje.joint_encoder import EdjeReranker
from ldot_milvus.models.lightningdot.bundle import Bundle
from ldot_milvus.models.registry import find_model, find_reranker
from ldot_milvus.regions import RegionExtractor
from ldot_milvus.regions.bottom_up.extractor import BottomUpExtractor
from ldot_milvus.regions.files import RegionFile, open_regions, write_lmdb, write_npz, write_tsv
from ldot_milvus.regions.grid import GridExtractor
from ldot_milvus.regions.labels import LabelClassifier, LabelledExtractor
from ldot_milvus.regions.registry import register_extractor
from ldot_milvus.search.duplicates import Duplicate, find_duplicates
from ldot_milvus.search.query import RowId
from ldot_milvus.search.requests import SearchRequest
from ldot_milvus.sources import read
from ldot_milvus.stores.migration import Migration, migrate
from ldot_milvus.stores.recall import Recall, measure
from ldot_milvus.stores.region_place import open_region_store
from ldot_milvus.stores.regions import RegionStore
from ldot_milvus.stores.registry import FolderAddress, IndexSupport, StoreAddress
from ldot_milvus.stores.upgrade import Upgrade, upgrade

Vectors = NDArray[np.float32]


def images(path: Path) -> list[ImageInput]:
    """Every form of an image is one for a type checker."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    data = path.read_bytes()
    forms: list[ImageSource] = [
        str(path), path, data, bytearray(data), memoryview(data), io.BytesIO(data), path.open("rb"), pixels,
        pixels / 255, torch.zeros(3, 8, 8), Image.open(path), Image.new("RGB", (8, 8)),
    ]  # fmt: skip
    photo = open_image(path, draft_to=224)
    assert_type(photo, Photo)
    assert_type(decode(data).image, Image.Image)
    assert_type((photo.width, photo.height), tuple[int, int])
    return [*forms]


def ingest(folder: Path) -> Report:
    store = open_store("faiss:./ldot-data", collection="photos")
    assert_type(store, VectorStore)
    sources = expand([folder, "more/*.jpg"], metadata=load_metadata(folder / "m.jsonl"), exclude=["*.gif"])
    assert_type(sources, Iterator[Source])
    mine = Source(str(folder / "a.jpg"), caption="a dog", namespace="ann", metadata={"album": "winter"})
    assert_type(read(mine), bytes)
    report = Ingestor(store, "ldot-mini", reranker=None).ingest([*sources, mine], skip_near_duplicates=True)
    assert_type(report, Report)
    assert_type(report.failed, list[Failure])
    assert_type([(failure.source, failure.reason) for failure in report.failed], list[tuple[str, str]])
    made = add_region_data(store, "ldot-mini", "none")
    assert_type(made, RegionReport)
    return report


def search(path: Path) -> list[Hit]:
    embedder = LightningDOTEmbedder("ldot-mini", device=None, dtype=None)
    as_protocol: Embedder = embedder
    assert_type(embedder.dim, int)
    assert_type(embedder.encode_texts(["a dog", "a cat"]), Vectors)
    assert_type(as_protocol.encode_texts(text for text in ("a dog",)), Vectors)
    assert_type(as_protocol.encode_images(images(path)), Vectors)
    as_protocol.encode_images(np.zeros((2, 8, 8, 3), np.uint8))
    retriever = Retriever(embedder, open_store(), reranker=load_reranker("none", as_protocol))
    hits = retriever.search(
        "two dogs in the snow", k=5, rerank=20, filter={"width": {"$gte": 640}}, min_probability=0.5
    )
    assert_type(hits, list[Hit])
    hits += retriever.search(image=path, kind="image")
    hits += retriever.search([(2, "golden retriever"), (-0.5, path), (0.3, Image.open(path))])
    hit = hits[0]
    assert_type(hit.id, str)
    assert_type((hit.score, hit.rerank_score, hit.probability), tuple[float, float | None, float | None])
    assert_type((hit.source, hit.caption, hit.kind, hit.namespace), tuple[str, str, str, str])
    assert_type((hit.width, hit.height), tuple[int, int])
    assert_type(hit.metadata, dict[str, Any])
    assert_type(hit.to_dict(), dict[str, Any])
    assert_type(Retriever.from_settings(), Retriever)
    return hits


def search_together(retriever: Retriever, client: Client) -> None:
    like = retriever.search(id="ab12", offset=5)
    query: list[tuple[float, str | RowId]] = [(1, "a dog"), (-0.5, RowId(like[0].id))]
    answers = retriever.search_many([SearchRequest("a dog"), SearchRequest(query, k=3)])
    assert_type(answers, list[list[Hit] | LdotError])
    try:
        assert_type(client.search(query, min_probability=0.5), list[Hit])
    except RowNotFound:
        client.close()


async def search_async(retriever: Retriever) -> None:
    assert_type(await retriever.asearch("a dog", k=3), list[Hit])


def rows(vector: Vectors) -> None:
    with open_store("http://localhost:19530", "photos", index="auto") as store:
        store.bind("fingerprint", 4)
        assert_type(store.upsert([Record(id="a", embedding=vector, metadata={"n": 1})]), int)
        assert_type(store.search(vector[None], 5, kind="image", filter=None), list[list[Match]])
        assert_type(store.search(vector[None], 5)[0][0].record, Record)
        assert_type(store.search(vector[None], 5)[0][0].score, float)
        assert_type(store.get(["a"], with_embeddings=True), list[Record])
        assert_type(store.iterate({"width": 5}, batch_size=10), Iterator[Record])
        assert_type((store.count(), store.delete(["a"]), store.update([])), tuple[int, int, int])
        assert_type((store.model, store.dim, store.schema_version), tuple[str | None, int | None, int | None])
        assert_type(store.properties, dict[str, str])
        duplicates = find_duplicates(store)
        assert_type(duplicates, list[list[Duplicate]])
        assert_type(upgrade(store), Upgrade)
        assert_type(measure(store), Recall | None)
        assert_type(migrate(store, open_store("faiss:./copy")), Migration)


def models(path: Path) -> None:
    embedder = load_embedder("ldot-mini", device="cpu", dtype="float32")
    assert_type(embedder, Embedder)
    files = find_model("ldot-mini")
    assert_type(files, ModelFiles)
    assert_type(files.fingerprint, str)
    assert_type(find_reranker(None, files), RerankerFiles | None)
    reranker = load_reranker(None, embedder)
    assert_type(reranker, Reranker | None)
    features: list[ImageFeatures] = embedder.image_features([path])
    if reranker is not None:
        kept: list[KeptImage] = reranker.keep(features)
        texts: list[Text] = ["a dog", [101, 7, 102]]
        assert_type(reranker.score(texts, kept * 2), Vectors)
        region_store = open_region_store(open_store(), reranker)
        assert_type(region_store, RegionStore)
        assert_type(region_store.has(["a"]), set[str])
        if isinstance(reranker, MatchingReranker):
            assert_type(reranker.score_and_match(["a dog"], kept), tuple[Vectors, Vectors])
    if isinstance(embedder, Calibrated):
        assert_type(embedder.calibration, Calibration | None)
    assert_type(Calibration(scale=1.0, bias=0.0).probability(2.0), float)
    bundle = load_model("ldot-mini")
    assert_type(bundle, Bundle)
    assert_type(bundle.encoder, LightningDOT)
    assert_type(bundle.reranker, CrossAttentionReranker | None)
    assert_type(bundle.extractor, RegionExtractor | None)


def networks(folder: str, ids: torch.Tensor, regions: torch.Tensor, boxes: torch.Tensor, mask: torch.Tensor) -> None:
    encoder = LightningDOT(LightningDOTConfig())
    assert_type(encoder.encode_text(ids, mask), torch.Tensor)
    assert_type(encoder.encode_image(regions, boxes, mask), torch.Tensor)
    CrossAttentionReranker(RerankerConfig())(ids, mask, regions, boxes, mask)
    LightningDOTForPreTraining(LightningDOTConfig())
    EdjeReranker(EdjeConfig())
    LightningDOT.from_pretrained(folder)


def extract(path: Path) -> None:
    bottom_up = BottomUpExtractor.from_pretrained()
    assert_type(bottom_up(path), Regions)
    assert_type(bottom_up([path, np.zeros((9, 9), np.uint8)]), list[Regions])
    grid: RegionExtractor = GridExtractor.from_pretrained("folder")
    classifier = LabelClassifier.from_pretrained("folder")
    labelled: RegionExtractor = LabelledExtractor(grid, classifier)
    assert_type(labelled.least_side, int | None)
    regions = grid([Image.open(path)])
    assert_type(regions, list[Regions])
    assert_type(regions[0].features, Vectors)
    file = open_regions("features.tsv")
    assert_type(file, RegionFile)
    assert_type(file.read("a"), Regions)
    assert_type(write_npz("folder", [("a", regions[0])]), int)
    assert_type(write_lmdb("folder", [("a", regions[0])]), int)
    assert_type(write_tsv("a.tsv", [("a", regions[0], 9, 9)]), int)


class ColourEmbedder:
    """A family of one's own, by the protocols alone."""

    name, dim, fingerprint, least_side, vocabulary_size, reranker = "colours", 3, "f", None, None, None
    former_fingerprints: tuple[str, ...] = ()

    def encode_texts(self, texts: Any) -> Vectors:
        return np.zeros((len(list(texts)), 3), np.float32)

    def encode_images(self, images: Any) -> Vectors:
        return self.encode_features(self.image_features(images))

    def image_features(self, images: Any) -> list[ImageFeatures]:
        return [np.asarray(open_image(image).image).mean((0, 1)) for image in images]

    def encode_features(self, features: Sequence[ImageFeatures]) -> Vectors:
        return np.stack(features).astype(np.float32)


class ColourReranker:
    name, fingerprint, dot_weight, least_side = "colours", "f", 0.0, None
    former_fingerprints: tuple[str, ...] = ()

    def image_features(self, images: Any) -> list[ImageFeatures]:
        return list(images)

    def keep(self, features: Sequence[ImageFeatures]) -> list[KeptImage]:
        return [{"mean": feature} for feature in features]

    def check(self, kept: KeptImage) -> None:
        if "mean" not in kept:
            raise InputError("no mean")

    def score(self, texts: Any, kept: Sequence[Mapping[str, NDArray[Any]]]) -> Vectors:
        return np.array([record["mean"].sum() for record in kept], np.float32)


class ColourFiles(ModelFiles):
    @property
    def dim(self) -> int:
        return 3

    def own_reranker(self) -> RerankerFiles | None:
        return ColourRerankerFiles(self.name, self.folder, self)

    def load(self, *, device: str | None = None, dtype: str | None = None) -> Embedder:
        return ColourEmbedder()


class ColourRerankerFiles(RerankerFiles):
    def load(self, embedder: Embedder) -> Reranker:
        second: SecondPassReranker = ColourReranker()
        return second


class ElsewhereAddress(FolderAddress):
    """A store of one's own."""

    scheme = "elsewhere"

    def open(
        self, collection: str, index: object, *, token: str | None = None, index_fallback: bool = True
    ) -> VectorStore:
        return open_store(f"faiss:{self.folder}", collection)


def extend() -> None:
    register_family("colours", "program:ColourFiles")
    register_store("program:ElsewhereAddress")
    register_extractor("colours", "program:extractor")
    address: StoreAddress = ElsewhereAddress("elsewhere:./x")
    assert_type(address.index_support(), IndexSupport)


def langchain(settings: Settings) -> list[Document]:
    retriever = LightningDOTRetriever(store=settings.store, collection="photos", k=5, rerank=20)
    base: BaseRetriever = retriever
    embeddings: Embeddings = LightningDOTEmbeddings("ldot-mini")
    assert_type(embeddings.embed_query("a dog"), list[float])
    assert_type(retriever.k, int)
    assert_type(base.invoke("two dogs in the snow"), list[Document])
    question: Query = Path("dog.jpg")
    documents = retriever.invoke(question, k=3)
    assert_type(photo_blocks(documents, longest_side=512), list[dict[str, Any]])
    compressor = LightningDOTCompressor(store=settings.store, k=3)
    assert_type([*compressor.compress_documents(documents, "a dog")], list[Document])
    tool: BaseTool = LightningDOTTool(retriever=retriever)
    assert_type(tool.name, str)
    store = LightningDOTVectorStore(store=settings.store, collection="photos")
    assert_type(store.add_texts(["a dog"]), list[str])
    assert_type(store.add_images(["dog.jpg"]), list[str])
    assert_type(store.similarity_search_with_score("a dog", k=2), list[tuple[Document, float]])
    return documents


def other_homes(path: Path) -> None:
    assert_type(HaystackRetriever("faiss:./ldot-data", top_k=5).run("a dog")["documents"], list[HaystackDocument])
    assert_type(LlamaIndexRetriever("faiss:./ldot-data", k=5).retrieve("a dog"), list[NodeWithScore])
    function = LightningDOTEmbeddingFunction("ldot-mini")
    assert_type(function.dim, int)
    assert_type(function.encode_queries(["a dog"]), list[Vectors])
    assert_type(function.encode_images([path, np.zeros((9, 9), np.uint8)]), list[Vectors])
    LightningDOTRerankFunction("faiss:./ldot-data")("a dog", ["a", "b"], top_k=2)
    assert_type(photo_server(), Server)


def errors() -> str:
    try:
        ingest(Path("photos"))
    except (CollectionNotFound, ModelMismatch, RegionStoreNotFound) as error:
        store_error: StoreError = error
        return store_error.code
    except (FilterError, UsageError, InputError, ModelError, TrainingError) as error:
        own: LdotError = error
        return own.code
    warnings.simplefilter("error", UnknownField)
    return assert_type(ldot_milvus.__version__, str)
