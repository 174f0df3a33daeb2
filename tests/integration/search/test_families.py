"""The whole way for each published family: a folder of photos, ingested, searched and re-ranked on the local store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ldot_milvus import Retriever, open_store
from ldot_milvus.cli import main
from ldot_milvus.errors import UsageError
from ldot_milvus.evaluation.datasets import read_pairs
from ldot_milvus.evaluation.evaluate import evaluate
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.integrations.langchain import LightningDOTRetriever
from ldot_milvus.models.loading import load_embedder, load_reranker
from ldot_milvus.sources import Source, expand
from tests import families
from tests.conftest import Run

PAIRS = {  # first stage and re-ranker; None: the first stage's own
    "siglip": ("siglip", None),
    "clip": ("clip", None),
    "blip": ("blip", None),
    "siglip with blip": ("siglip", "blip"),
    "clip with blip": ("clip", "blip"),
    "lightningdot with blip": ("lightningdot", "blip"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("families")
    made = {name: str(getattr(families, name)(folder / name)) for name in ("siglip", "clip", "blip")}
    return {**made, "lightningdot": tiny_model}


@pytest.mark.parametrize("pair", PAIRS)
def test_ingested_searched_and_reranked(
    pair: str, models: dict[str, str], photo_folder: Callable[[int], Path], tmp_path: Path, monkeypatch
) -> None:
    model, own = (name and models[name] for name in PAIRS[pair])
    photos = photo_folder(6)
    with open_store(f"faiss:{tmp_path / 'store'}", "photos") as store:
        ingestor = Ingestor(store, model, reranker=own, device="cpu")
        assert (ingestor.ingest(list(expand([str(photos)]))).added, ingestor.region_store is None) == (
            6, PAIRS[pair] in (("siglip", None), ("clip", None))
        )  # fmt: skip
        assert Ingestor(store, model, reranker=own).ingest(list(expand([str(photos)]))).unchanged == 6
        embedder = load_embedder(model, device="cpu")
        retriever = Retriever(embedder, store, reranker=own)
        paths = [str(path.resolve()) for path in photos.iterdir()]
        vectors = dict(zip(paths, embedder.encode_images(paths), strict=True))
        same = retriever.search(image=photos / "0003.jpg", k=1)
        assert Path(same[0].source).name == "0003.jpg"
        vector = vectors[same[0].source]
        assert same[0].score == pytest.approx(float(vector @ vector), rel=1e-2)

        for path in photos.iterdir():  # a query by text reads what is kept, and opens no photo
            path.unlink()
        opened = []
        for module in ("images.decode", "images.open_image", "models.pixels.open_image", "ingest.pipeline.decode"):
            monkeypatch.setattr(f"ldot_milvus.{module}", lambda *arguments, **_: opened.append(arguments))
        hits = retriever.search("Two dogs", k=6)
        assert len({hit.id for hit in hits}) == 6
        if retriever.reranker is None:
            (query,) = embedder.encode_texts(["Two dogs"])
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
            assert [hit.score for hit in hits] == pytest.approx([vectors[hit.source] @ query for hit in hits], abs=1e-3)
        else:
            kept = dict(ingestor.region_store.get([hit.id for hit in hits]))
            matches = retriever.reranker.score(["Two dogs"] * 6, [kept[hit.id] for hit in hits])
            expected = matches + retriever.reranker.dot_weight * np.array([hit.score for hit in hits])
            np.testing.assert_allclose([hit.rerank_score for hit in hits], expected, atol=1e-4, rtol=1e-5)
            assert list(expected) == sorted(expected, reverse=True)
        if pair == "clip":
            assert {hit.probability for hit in hits} == {None}
            with pytest.raises(UsageError, match="no calibration"):
                retriever.search("Two dogs", min_probability=0.1)
        else:
            likely = [hit.probability for hit in hits]
            assert all(0 <= probability <= 1 for probability in likely)
            least = sorted(likely)[3]
            expected = [hit.id for hit in hits if hit.probability >= least]
            assert [hit.id for hit in retriever.search("Two dogs", k=6, min_probability=least)] == expected
        with pytest.raises(UsageError, match="one kind"):
            retriever.search("Two dogs", kind="text", min_probability=0.1)
        found = LightningDOTRetriever(store=store, model=embedder, reranker=own, k=2).invoke("Two dogs")
        assert [document.metadata["source"] for document in found] == [hit.source for hit in hits[:2]]
        assert not opened


def test_a_photo_finds_texts_through_a_second_pass(models: dict[str, str], photo_folder, tmp_path: Path) -> None:
    photo = photo_folder(1) / "0000.jpg"
    texts = ["a dog", "two cats", "snow"]
    with open_store(f"faiss:{tmp_path / 'store'}", "texts") as store:
        Ingestor(store, models["siglip"], reranker=models["blip"], device="cpu").ingest(
            [Source(path=text, caption=text, kind="text") for text in texts]
        )
        embedder = load_embedder(models["siglip"], device="cpu")
        hits = Retriever(embedder, store, reranker=models["blip"]).search(image=photo, kind="text", k=3)
        blip = load_embedder(models["blip"], device="cpu")
        kept = blip.reranker.keep(blip.image_features([photo]))
        for hit in hits:
            expected = blip.reranker.score([hit.caption], kept)[0] + hit.score
            assert hit.rerank_score == pytest.approx(float(expected), abs=1e-4)


def test_evaluated_with_a_second_pass(models: dict[str, str], photo_folder: Callable[[int], Path]) -> None:
    photos = photo_folder(4)
    for path in photos.glob("*.jpg"):
        path.with_suffix(".json").write_text('{"captions": ["a dog", "a cat"]}')
    embedder = load_embedder(models["siglip"], device="cpu")
    result = evaluate(embedder, read_pairs([photos]), reranker=load_reranker(models["blip"], embedder), rerank=3)
    assert result["reranked"]["M"] == 3


def test_doctor_and_a_wrong_pair_from_the_shell(models: dict[str, str], photo_folder, run: Run) -> None:
    doctor = CliRunner().invoke(main, ["doctor"], env={"LDOT_MODEL": models["siglip"]})
    assert "vectors of 32, photos of 32 x 32 pixels" in doctor.output
    wrong = run(
        "celery", "-A", "workers", "enqueue", str(photo_folder(1)), "--model", models["siglip"],
        "--reranker", models["lightningdot"],
    )  # fmt: skip
    assert wrong.returncode == 2
    assert len(wrong.stderr.strip().splitlines()) == 1
    assert models["siglip"] in wrong.stderr
    assert models["lightningdot"] in wrong.stderr
