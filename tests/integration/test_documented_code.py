"""The Python blocks of README and docs run as they are printed, after what the text around them presupposes."""

from __future__ import annotations

import ast
import base64
import datetime
import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from ldot_milvus import LightningDOTRetriever, Retriever, open_store
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.models import registry as models
from ldot_milvus.sources import expand
from ldot_milvus.stores import registry as stores
from tests import toy_model
from tests.conftest import ROOT
from tests.documentation import PAGES, SERVICE, blocks, served, write_photos
from tests.integration.stores import toy_store

ELSEWHERE = {
    "docs/integrations.md": "tests/integration/integrations/test_documented.py",
    "docs/extend/extractor.md": "tests/unit/test_extractor_guide.py",
}
PYTHON = [page for page in PAGES if blocks(page, "python") and page not in ELSEWHERE]

Names = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, mini) -> Path:
    """A folder with photos, and with the collection of them that the blocks open."""
    found = tmp_path_factory.mktemp("documented")
    write_photos(found)
    with open_store(f"faiss:{found / 'ldot-data'}", "images") as store:
        Ingestor(store, "ldot-mini", device="cpu").ingest(list(expand([str(found)])))
    return found


def nothing(_: pytest.FixtureRequest) -> Names:
    return {}


def a_row(request: pytest.FixtureRequest) -> Names:
    retriever = Retriever.from_settings()
    return {"retriever": retriever, "id": retriever.search("a dog", k=1)[0].id}


def a_photo(_: pytest.FixtureRequest) -> Names:
    return {"hashlib": hashlib, "data": b"photo", "namespace": "anna"}


def a_toy_model(request: pytest.FixtureRequest) -> Names:
    embedder = toy_model.ToyEmbedder(SimpleNamespace(
        name="toy", dim=3, fingerprint="0", own_reranker=lambda: SimpleNamespace(load=lambda embedder: None)
    ))  # fmt: skip
    reranker = toy_model.ToyReranker(SimpleNamespace(name="toy", fingerprint="0"), embedder)
    request.getfixturevalue("monkeypatch").setattr(models, "FAMILIES", dict(models.FAMILIES))
    return {**vars(toy_model), "embedder": embedder, "reranker": reranker, "photos": [Path("a.jpg"), Path("b.jpg")]}


def a_toy_store(request: pytest.FixtureRequest) -> Names:
    request.getfixturevalue("monkeypatch").setattr(stores, "_REGISTERED", stores._REGISTERED.copy())
    return dict(vars(toy_store))


def a_retriever(_: pytest.FixtureRequest) -> Names:
    return {"retriever": Retriever.from_settings()}


def langchain(request: pytest.FixtureRequest) -> Names:
    from langchain_core.language_models import FakeMessagesListChatModel
    from langchain_core.messages import AIMessage, HumanMessage

    from ldot_milvus.integrations.langchain import LightningDOTCompressor, LightningDOTTool

    class Model(FakeMessagesListChatModel):
        def bind_tools(self, tools: Any, **_: Any) -> Model:
            return self

    # langchain-classic is no dependency of the tests. The block only gives it the compressor.
    retrievers = ModuleType("langchain_classic.retrievers")
    retrievers.ContextualCompressionRetriever = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch = request.getfixturevalue("monkeypatch")
    monkeypatch.setitem(sys.modules, "langchain_classic", ModuleType("langchain_classic"))
    monkeypatch.setitem(sys.modules, "langchain_classic.retrievers", retrievers)
    return {
        "Path": Path,
        "HumanMessage": HumanMessage,
        "LightningDOTCompressor": LightningDOTCompressor,
        "LightningDOTRetriever": LightningDOTRetriever,
        "LightningDOTTool": LightningDOTTool,
        "encoded": base64.b64encode(Path("a.jpg").read_bytes()).decode(),
        "model": Model(responses=[AIMessage("the first")]),
        "keyword_search": None,
    }


GIVEN: dict[str, Callable[[pytest.FixtureRequest], Names]] = {
    "README.md": nothing,
    "docs/checkpoints.md": nothing,
    "docs/collection.md": a_photo,
    "docs/evaluation.md": nothing,
    "docs/extend/model.md": a_toy_model,
    "docs/extend/store.md": a_toy_store,
    "docs/filters.md": lambda _: {"datetime": datetime},
    "docs/guides.md": langchain,
    "docs/langchain.md": langchain,
    "docs/page.md": nothing,
    "docs/reference/index.md": nothing,
    "docs/reference/search.md": a_row,
    "docs/search.md": a_retriever,
    "docs/serve.md": nothing,
}
"""What the text around the blocks of a page presupposes. A page that is new here needs an entry."""


@pytest.fixture
def instead(tmp_path: Path) -> dict[str, str]:
    """What stands in for weights on the hub, a Milvus server and packages of the reader."""
    return {
        "unc-nlp/frcnn-vg-finetuned": str(ROOT / "tests" / "golden" / "bottom_up"),
        "FacebookAI/xlm-roberta-base": str(tmp_path / "xlm"),
        "http://localhost:19530": "faiss:./ldot-data",
        "my_package.toy_model": "tests.toy_model",
        "my_package.toy_store": "tests.integration.stores.toy_store",
    }


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[str]:
    pytest.importorskip("ldot_milvus.serve.app", reason="pip install 'ldot-milvus[serve]'")
    with served(folder, "ldot-mini") as address:
        yield address


def write_multilingual(folder: Path) -> None:
    """Write a small text encoder of the type that the guide starts from."""
    from transformers import BertTokenizer, XLMRobertaConfig, XLMRobertaModel

    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 8,
    }
    XLMRobertaModel(XLMRobertaConfig(**sizes), add_pooling_layer=False).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"]
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)


def test_every_page_is_tested() -> None:
    assert set(PYTHON) == GIVEN.keys()
    for page, test in ELSEWHERE.items():
        assert Path(page).name in (ROOT / test).read_text()


@pytest.mark.parametrize("page", PYTHON)
def test_the_blocks_run(
    page: str, folder: Path, tmp_path: Path, instead: dict[str, str], request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LDOT_DEVICE", "cpu")
    if page == "docs/evaluation.md":
        write_multilingual(tmp_path / "xlm")
    names = GIVEN[page](request)
    values = []
    for block in blocks(page, "python"):
        for printed, own in instead.items():
            block = block.replace(printed, own)
        if SERVICE.search(block):
            block = SERVICE.sub(request.getfixturevalue("service"), block)
        for statement in ast.parse(block).body:
            code = ast.get_source_segment(block, statement) or ""
            if isinstance(statement, ast.Expr):
                values.append(eval(code, names))
            else:
                exec(code, names)
    CHECKS.get(page, lambda names, values: None)(names, values)


def readme_finds(names: Names, values: list[Any]) -> None:
    assert names["documents"]
    assert isinstance(names["store"].count(), int)


def filters_apply(_: Names, values: list[Any]) -> None:
    assert len(values) > 4
    with open_store("faiss:./ldot-data", "images") as store:
        for value in values:
            assert store.count(filter=value) <= store.count()


def toy_is_registered(names: Names, _: list[Any]) -> None:
    assert "toy" in models.FAMILIES
    assert names["vectors"].shape == (2, 3)
    assert len(names["kept"]) == 2


def toy_store_is_registered(names: Names, _: list[Any]) -> None:
    assert stores.parse_address("toy:somewhere").index_types == names["ToyAddress"].index_types


def photos_are_found(names: Names, values: list[Any]) -> None:
    assert names["agent"] is not None
    assert names["compressor"].k == 5
    found = [document for document, _ in values[-2]]
    assert [document.metadata["metadata"]["album"] for document in found] == ["winter"]


def rows_are_found(names: Names, values: list[Any]) -> None:
    assert [len(answer) for answer in names["answers"]] == [5, 3]


def the_service_finds(names: Names, _: list[Any]) -> None:
    assert len(names["hits"]) == 5
    names["client"].close()


CHECKS: dict[str, Callable[[Names, list[Any]], None]] = {
    "README.md": readme_finds,
    "docs/collection.md": lambda names, _: len(names["id"]) == 64,
    "docs/extend/model.md": toy_is_registered,
    "docs/extend/store.md": toy_store_is_registered,
    "docs/filters.md": filters_apply,
    "docs/langchain.md": photos_are_found,
    "docs/reference/search.md": rows_are_found,
    "docs/serve.md": the_service_finds,
}
