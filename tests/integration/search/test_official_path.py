"""The whole way of an official checkpoint: photos, bottom-up regions, converted models, store, search, re-ranking."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from ldot_milvus import LightningDOTEmbedder, Retriever, load_model, open_store
from ldot_milvus.cli import main
from ldot_milvus.errors import ModelError, ModelMismatch, UsageError
from ldot_milvus.evaluation.datasets import read_pairs
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.models.lightningdot.convert import CASED, convert
from ldot_milvus.models.registry import find_model
from ldot_milvus.regions import BottomUpExtractor, Regions, open_regions
from ldot_milvus.regions.files import write_tsv
from ldot_milvus.sources import expand
from tests.conftest import PHOTOS
from tests.tolerance import assert_recall, both_bounds
from tests.unit.evaluation.test_evaluate import cross_scores, dot_products

GOLDEN = Path(__file__).parents[2] / "golden"
DETECTOR = GOLDEN / "bottom_up"
SAMPLES = Path(__file__).parents[4] / "shared" / "bottom-up-samples"
HEADS = {"num_attention_heads": 4}
NAMES = ("000000205401.jpg", "000000214753.jpg", "000000255165.jpg", "000000377575.jpg")


def checkpoint(name: str, width: int, path: Path) -> Path:
    """A golden checkpoint for regions of ``width`` features and the words of bert-base-cased; the rest as it was."""
    content = torch.load(GOLDEN / "lightningdot" / name, weights_only=True)
    state = content.get("model_dict", content)
    generator = torch.Generator().manual_seed(0)
    for key in [
        key for key in state if key.endswith(("word_embeddings.weight", "img_linear.weight", "mask_embedding.weight"))
    ]:
        rows, columns = state[key].shape
        if key.endswith("word_embeddings.weight"):
            if "img_model" in key:
                continue
            rows = CASED
        else:
            columns = width
        state[key] = torch.randn(rows, columns, generator=generator) * (
            0.2 if key.endswith("img_linear.weight") else 0.02
        )
    torch.save(content, path)
    return path


def converted(folder: Path, width: int, detector: Path | None) -> Path:
    model = folder / "model"
    convert(
        checkpoint("finetuned.pt", width, folder / "dual.pt"), model, config=HEADS,
        detector=None if detector is None else str(detector),
    )  # fmt: skip
    convert(checkpoint("reranker.pt", width, folder / "reranker.pt"), model / "reranker", config=HEADS)
    return model


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the small detector inside."""
    return converted(tmp_path_factory.mktemp("official"), 256, DETECTOR)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the published width, with the public detector, which no test can fetch."""
    return converted(tmp_path_factory.mktemp("published"), 2048, None)


def ingest(store_folder: Path, model: Path, *paths: str):
    store = open_store(f"faiss:{store_folder}", "images")
    report = Ingestor(store, str(model), device="cpu").ingest(list(expand(list(paths))))
    assert not report.failed, report.failed
    return store


def ldot(*arguments: str) -> str:
    """What the command prints, in this process."""
    done = CliRunner().invoke(main, arguments, env={"LDOT_DEVICE": "cpu"})
    assert done.exit_code == 0, done.output
    return done.stdout


def test_photos_to_reranked_hits(official: Path, tmp_path: Path) -> None:
    photos = [str(PHOTOS / name) for name in NAMES]
    with ingest(tmp_path / "store", official, *photos) as store:
        embedder = LightningDOTEmbedder(str(official), device="cpu")
        assert isinstance(embedder.bundle.extractor, BottomUpExtractor)
        assert embedder.bundle.extractor.config.short_side == 600
        hits = Retriever(embedder, store).search("two people riding horses on the beach", k=4, rerank=4)
        assert {Path(hit.source).name for hit in hits} == set(NAMES)
        scores = [hit.rerank_score for hit in hits]
        assert None not in scores
        assert scores == sorted(scores, reverse=True)
        # Each score is that of the regions which the detector finds in the photo itself.
        extractor = BottomUpExtractor.from_pretrained(DETECTOR, short_side=600, long_side=1000)
        for hit in hits:
            regions = extractor(hit.source)
            assert 10 <= len(regions) <= 100
            (vector,) = embedder.encode_images([regions])
            (text,) = embedder.encode_texts(["two people riding horses on the beach"])
            assert hit.score == pytest.approx(float(vector @ text), abs=1e-3)
            kept = embedder.reranker.keep([regions])
            (again,) = embedder.reranker.score(["two people riding horses on the beach"], kept)
            assert hit.rerank_score == pytest.approx(float(again), abs=2e-2)  # stored in half precision


def test_a_jpeg_is_not_decoded_smaller(official: Path, tmp_path: Path) -> None:
    """The embedder gives the detector every pixel, however large the photo is."""
    from PIL import Image

    path = tmp_path / "large.jpg"
    Image.open(PHOTOS / NAMES[1]).resize((2400, 1600)).save(path)
    embedder = LightningDOTEmbedder(str(official), device="cpu")
    assert embedder.least_side is None
    (found,) = embedder.image_features([path])
    (pixels,) = embedder.image_features([Image.open(path)])
    np.testing.assert_array_equal(found.features, pixels.features)


@pytest.mark.parametrize("format", ["lmdb", "npz", "tsv"])
def test_extracted_features_are_those_of_ingestion(format: str, official: Path, tmp_path: Path) -> None:
    photos = [str(PHOTOS / name) for name in NAMES[:2]]
    out = tmp_path / "out"
    done = ldot("regions", *photos, "--out", str(out), "--format", format, "--show", "--detector", str(DETECTOR))
    assert done.startswith(f"{out}: 2 photos, ")
    assert {path.name for path in (tmp_path / "out" / "show").iterdir()} == set(NAMES[:2])
    file = open_regions(tmp_path / "out" / "regions.tsv" if format == "tsv" else tmp_path / "out")
    suffix = "" if format == "tsv" else ".npz"
    assert sorted(file.names) == [f"{Path(name).stem}{suffix}" for name in NAMES[:2]]
    embedder = LightningDOTEmbedder(str(official), device="cpu")
    read = [file.read(f"{Path(name).stem}{suffix}") for name in NAMES[:2]]
    np.testing.assert_allclose(embedder.encode_images(read), embedder.encode_images(photos), atol=2e-3)
    if format == "tsv":
        assert all(regions.objects is not None and (regions.objects < 20).all() for regions in read)
    else:
        assert all(regions.soft_labels is not None and regions.soft_labels.shape[1] == 21 for regions in read)


def test_evaluation_from_pixels_and_from_features_agrees(official: Path, tmp_path: Path) -> None:
    photos, features = tmp_path / "photos", str(tmp_path / "all")
    photos.mkdir()
    for number, name in enumerate(NAMES[:3]):
        shutil.copy(PHOTOS / name, photos / name)
        captions = json.dumps({"captions": [f"a photo of number {number}", f"{number} things"]})
        (photos / f"{Path(name).stem}.json").write_text(captions)
    ldot("regions", str(photos), "--out", features, "--detector", str(DETECTOR))
    results = [
        json.loads(ldot("eval", "--data", str(photos), "--model", str(official), "--rerank", "3", "--json", *extra))
        for extra in ([], ["--regions", features])
    ]
    embedder, pairs = LightningDOTEmbedder(str(official), device="cpu"), read_pairs([photos])
    scores, owner = dot_products(embedder, pairs)
    crossed = cross_scores(embedder, pairs) + embedder.reranker.dot_weight * scores
    for result in results:  # the file has the features in half precision
        assert (result["images"], result["captions"], result["reranked"]["M"]) == (3, 6, 3)
        assert_recall(result, both_bounds(scores, owner, near=1e-3))
        assert_recall(result["reranked"], both_bounds(scores, owner, crossed=crossed, count=3, near=1e-3))


def test_what_fails_is_listed_and_the_others_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    shutil.copy(PHOTOS / NAMES[0], tmp_path / "one.jpg")
    shutil.copy(PHOTOS / NAMES[1], tmp_path / "a" / "one.jpg")
    (tmp_path / "torn.jpg").write_bytes((PHOTOS / NAMES[0]).read_bytes()[:9000])
    arguments = ["one.jpg", "torn.jpg", "a/one.jpg", "--out", "out", "--format", "npz", "--detector", str(DETECTOR)]
    done = CliRunner().invoke(main, ["regions", *arguments])
    assert done.exit_code == 1
    assert done.stdout.startswith("out: 1 photos, ")
    assert "torn.jpg: the image is truncated" in done.stderr
    assert "a/one.jpg: another photo is called 'one' too: one.jpg" in done.stderr
    again = CliRunner().invoke(main, ["regions", *arguments])
    assert again.exit_code == 2
    assert again.stderr == "Error: out exists and is not empty: name a new folder\n"
    for mistake in (["--sides", "600"], ["--sides", "1000x600"], ["--detector", "/nowhere"]):
        refused = CliRunner().invoke(
            main, ["regions", "one.jpg", "--out", "new", "--detector", str(DETECTOR), *mistake]
        )
        assert refused.exit_code == 2
        assert refused.stderr.count("\n") == 1
        assert not (tmp_path / "new").exists()


def test_a_detector_of_another_width_is_refused(tmp_path: Path, official: Path) -> None:
    source = checkpoint("finetuned.pt", 64, tmp_path / "x.pt")
    with pytest.raises(ModelError, match="extracts regions of 256 features, and this model reads 64"):
        convert(source, tmp_path / "out", config=HEADS, detector=str(DETECTOR))
    with pytest.raises(UsageError, match="re-ranker"):
        convert(GOLDEN / "lightningdot" / "reranker.pt", tmp_path / "out", config=HEADS, detector=str(DETECTOR))
    assert not (tmp_path / "out").exists()
    convert(source, tmp_path / "out", config=HEADS)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["region_extractor"] is None
    # Put together by hand, they are refused when the first photo comes.
    config["region_extractor"] = {"kind": "bottom_up", "weights": str(DETECTOR)}
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    shutil.copy(official / "tokenizer.json", tmp_path / "out")
    shutil.copy(official / "tokenizer_config.json", tmp_path / "out")
    with pytest.raises(ModelError, match=r"reads regions of 64 features, and the extractor in .*bottom_up returns 256"):
        LightningDOTEmbedder(str(tmp_path / "out"), device="cpu").encode_images([PHOTOS / NAMES[0]])
    config["region_extractor"] = {"kind": "bottom_up", "weights": str(DETECTOR), "colour": 1}
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="colour"):
        LightningDOTEmbedder(str(tmp_path / "out"), device="cpu").encode_images([PHOTOS / NAMES[0]])


def test_another_detector_is_another_model(official: Path, tmp_path: Path) -> None:
    """Other weights, other boxes or another size of input: the collection of the one is refused to the other."""
    ingest(tmp_path / "store", official, str(PHOTOS / NAMES[0])).close()
    for change in ("weights", "boxes", "sides"):
        other = tmp_path / change
        shutil.copytree(official, other)
        if change == "weights":
            state = torch.load(other / "regions" / "pytorch_model.bin", weights_only=True)
            state["backbone.stem.conv1.weight"] *= 1.5
            torch.save(state, other / "regions" / "pytorch_model.bin")
        else:
            config = json.loads((other / "config.json").read_text())
            config["region_extractor"] |= {"boxes": "reference"} if change == "boxes" else {"short_side": 800}
            (other / "config.json").write_text(json.dumps(config))
        with open_store(f"faiss:{tmp_path / 'store'}", "images") as store, pytest.raises(ModelMismatch):
            Ingestor(store, str(other), device="cpu")


def test_a_folder_named_in_the_configuration_counts_by_its_bytes(official: Path, tmp_path: Path) -> None:
    model, detector = tmp_path / "model", tmp_path / "detector"
    shutil.copytree(official, model)
    shutil.move(model / "regions", detector)
    config = json.loads((model / "config.json").read_text())
    config["region_extractor"]["weights"] = "../detector"
    (model / "config.json").write_text(json.dumps(config))
    first = find_model(str(model)).fingerprint
    regions = load_model(str(model), device="cpu").extractor
    assert isinstance(regions, BottomUpExtractor)
    (detector / "config.yaml").write_text((detector / "config.yaml").read_text() + "\n# changed\n")
    assert find_model(str(model)).fingerprint != first


def test_the_public_detector_is_fetched_when_a_photo_needs_it(published: Path) -> None:
    config = json.loads((published / "config.json").read_text())["region_extractor"]
    assert config == {
        "kind": "bottom_up", "boxes": "uniter", "short_side": 600, "long_side": 1000,
        "weights": "unc-nlp/frcnn-vg-finetuned",
    }  # fmt: skip
    embedder = LightningDOTEmbedder(str(published), device="cpu")
    ready = Regions(np.ones((12, 2048), np.float32), np.ones((12, 7), np.float32), np.ones(12, np.float32))
    assert embedder.encode_images([ready]).shape == (1, embedder.dim)
    with pytest.raises(ModelError, match=r"unc-nlp/frcnn-vg-finetuned.*model/regions"):
        embedder.encode_images([PHOTOS / NAMES[0]])


def test_threads_that_need_the_detector_at_once_load_it_once(official: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    from_pretrained = BottomUpExtractor.from_pretrained

    def slow(*arguments, **options):
        loaded.append(arguments)
        time.sleep(0.2)
        return from_pretrained(*arguments, **options)

    monkeypatch.setattr(BottomUpExtractor, "from_pretrained", slow)
    bundle = load_model(str(official), device="cpu")
    with ThreadPoolExecutor(4) as threads:
        assert len(set(map(id, threads.map(lambda _: bundle.extractor, range(8))))) == 1
    assert len(loaded) == 1


def check_tsv(path: Path, model: Path, folder: Path) -> None:
    """Every photo of a TSV is found by its own regions, and re-ranked."""
    file = open_regions(path)
    with ingest(folder, model, str(path)) as store:
        assert store.count() == len(file.names)
        embedder = LightningDOTEmbedder(str(model), device="cpu")
        for name in file.names:
            (vector,) = embedder.encode_images([file.read(name)])
            scores = {match.record.id: match.score for match in store.search(vector[None], k=len(file.names))[0]}
            assert scores[name] == pytest.approx(float(vector @ vector), rel=1e-4)
        hits = Retriever(embedder, store).search("a dog", k=3, rerank=5)
        assert all(hit.rerank_score is not None for hit in hits)


def test_a_public_tsv_is_encoded_and_searched(published: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def photo(number: int) -> tuple[str, Regions, int, int]:
        corners = np.sort(rng.random((36, 2, 2), np.float32), axis=1).reshape(36, 4)
        boxes = np.concatenate([corners, np.zeros((36, 3), np.float32)], axis=1)
        features = rng.gamma(0.5, 1.4, (36, 2048)).astype(np.float32)
        ids = rng.integers(0, 400, 36)
        ones = np.ones(36, np.float32)
        return (
            f"COCO_{number}",
            Regions(features, boxes, ones, objects=ids, attributes=ids, attribute_confidence=ones),
            640, 480,
        )  # fmt: skip

    assert write_tsv(tmp_path / "obj36.tsv", (photo(number) for number in range(6))) == 6
    check_tsv(tmp_path / "obj36.tsv", published, tmp_path / "store")


@pytest.mark.skipif(
    not SAMPLES.is_dir(), reason="the sample of the original model's features is not beside the project"
)
def test_the_original_models_features_are_encoded_and_searched(published: Path, tmp_path: Path) -> None:
    path = SAMPLES / "train2014_obj36.tsv"
    regions = open_regions(path).read(open_regions(path).names[0])
    assert regions.features.shape == (36, 2048)
    assert regions.objects is not None
    assert (regions.objects < 1600).all()
    check_tsv(path, published, tmp_path / "store")
