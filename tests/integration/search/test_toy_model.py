"""A model family in a file of under 60 lines and one registered line works wherever a model's name does."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from ldot_milvus import Retriever, Settings, open_store
from ldot_milvus.cli import main
from ldot_milvus.errors import ModelError, ModelMismatch, UsageError
from ldot_milvus.evaluation.datasets import read_pairs
from ldot_milvus.evaluation.evaluate import evaluate
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.integrations.langchain import LightningDOTRetriever
from ldot_milvus.models.loading import load_embedder, load_model
from ldot_milvus.models.registry import FAMILIES, find_model, find_reranker, register_family
from ldot_milvus.sources import expand
from tests.conftest import ROOT

COLOURS = ("red", "green", "blue", "white", "black")


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("ldot_milvus.models.registry.FAMILIES", dict(FAMILIES))
    register_family("toy", "tests.toy_model:ToyFiles")
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "toy"}')
    (folder / "model.safetensors").write_bytes(b"")
    return str(folder)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for colour in COLOURS:
        buffer = io.BytesIO()
        Image.new("RGB", (32, 24), colour if colour != "green" else "lime").save(buffer, "PNG")
        (folder / f"{colour}.png").write_bytes(buffer.getvalue())
        (folder / f"{colour}.json").write_text(json.dumps({"captions": [f"a {colour} wall"]}))
    return folder


def test_it_is_under_sixty_lines() -> None:
    lines = (ROOT / "tests" / "toy_model.py").read_text().splitlines()
    assert len(lines) < 60


def test_ingested_searched_and_reranked(toy: str, photos: Path, tmp_path: Path) -> None:
    with open_store(f"faiss:{tmp_path / 'store'}", "colours") as store:
        report = Ingestor(store, toy).ingest(list(expand([str(photos)])))
        assert (report.added, report.failed) == (5, [])
        assert store.model == find_model(toy).fingerprint
        retriever = Retriever(load_embedder(toy), store)
        for colour in COLOURS:
            (first, *_) = retriever.search(f"a {colour} wall", k=3)
            assert Path(first.source).stem == colour
            assert first.rerank_score == pytest.approx(3, abs=0.05)
        (same, *_) = retriever.search(image=photos / "blue.png", k=1)
        assert Path(same.source).stem == "blue"
        answers = LightningDOTRetriever(store=store, model=load_embedder(toy), k=1).invoke("a red wall")
        assert Path(answers[0].metadata["source"]).stem == "red"
        with pytest.raises(ModelMismatch):
            Ingestor(store, "ldot-mini")


def test_evaluated(toy: str, photos: Path) -> None:
    result = evaluate(load_embedder(toy), read_pairs([photos]), rerank=3)
    assert result["text_to_image"]["R@1"] == result["reranked"]["image_to_text"]["R@1"] == 100


def test_from_the_shell(toy: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDOT_MODEL", toy)
    monkeypatch.setenv("LDOT_STORE", f"faiss:{tmp_path / 'store'}")
    with open_store() as store:
        Ingestor(store, Settings().model).ingest(list(expand([str(photos)])))
    found = CliRunner().invoke(main, ["search", "a white wall", "-k", "1", "--json"])
    assert found.exit_code == 0, found.output
    assert Path(json.loads(found.stdout)["hits"][0]["source"]).stem == "white"
    plain = CliRunner().invoke(main, ["search", "a white wall", "--reranker", "none", "--json"])
    assert json.loads(plain.stdout)["hits"][0]["rerank_score"] is None
    evaluated = CliRunner().invoke(main, ["eval", "--data", str(photos), "--rerank", "2", "--json"])
    assert json.loads(evaluated.stdout)["reranked"]["text_to_image"]["R@1"] == 100
    doctor = CliRunner().invoke(main, ["doctor"])
    assert "vectors of 3" in doctor.output


def test_what_does_not_fit_is_told(toy: str, tiny_model: str, tmp_path: Path) -> None:
    tiny = find_model(tiny_model)
    with pytest.raises(ModelError, match=f"{tiny_model}/reranker.*LDOT_RERANKER"):
        find_model(f"{tiny_model}/reranker")
    with pytest.raises(ModelError, match="is not a LightningDOT model"):
        load_model(toy)
    with pytest.raises(UsageError, match="no-such"):
        find_reranker("no-such", tiny)
    with pytest.raises(ModelError, match=f"{tiny_model}/reranker.*reads LightningDOT's regions.*{toy}"):
        find_reranker(f"{tiny_model}/reranker", find_model(toy))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match=r"'bert'.*'lightningdot'.*'toy'"):
        find_model(str(tmp_path / "other"))
