"""Label names: the block of a vector against its definition, and what a model with label names refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertModel

from ldot_milvus import LightningDOTEmbedder
from ldot_milvus.errors import InputError, ModelError, UsageError
from ldot_milvus.model import LightningDOT, LightningDOTConfig
from ldot_milvus.models.registry import find_model
from ldot_milvus.training.checkpoints import copy_folder
from ldot_milvus.training.labels import add_labels
from ldot_milvus.training.recipe import Labels
from tests.conftest import make_photo
from tests.labelled_models import CAPTIONS, NAMES, build_classifier, build_labelled_model

DIM = 8  # more than four centred vectors of five names span
TEXTS = ["a dog", "an elephant in the water", "x"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> tuple[Path, Path]:
    return build_labelled_model(tmp_path_factory.mktemp("models") / "labelled", tiny_model)


@pytest.fixture(scope="module")
def embedder(folders: tuple[Path, Path]) -> LightningDOTEmbedder:
    return LightningDOTEmbedder(str(folders[0]), device="cpu")


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> Path:
    """A model whose regions have the classifier's features and the names' vectors."""
    return build_labelled_model(tmp_path_factory.mktemp("models") / "seeing", tiny_model, features=True)[0]


def sentences(folder: Path, texts: list[str]) -> np.ndarray:
    """Vectors of a sentence encoder, one text at a time: the mean of the last states, of length 1."""
    bert = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder.with_name(folder.name.removesuffix("-sentences")))
    with torch.inference_mode():
        states = [bert(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in texts]
    return torch.nn.functional.normalize(torch.stack(states), dim=1).numpy()


def test_block_is_the_mean_of_the_names_by_their_probabilities(
    folders: tuple[Path, Path], embedder: LightningDOTEmbedder
) -> None:
    _, encoder = folders
    names = sentences(encoder, [f"a photo of a {name}" for name in NAMES])
    (regions,) = embedder.image_features([make_photo(1)])
    assert regions.label_probabilities is not None
    photo = 0.25 * regions.label_probabilities[0] @ (names - names.mean(0))
    texts = sentences(encoder, TEXTS) - sentences(encoder, CAPTIONS).mean(0)
    expected = texts @ photo
    assert expected.std() > 1e-3
    blocks = embedder.encode_texts(TEXTS)[:, -DIM:] @ embedder.encode_features([regions])[0, -DIM:]
    np.testing.assert_allclose(blocks, expected, atol=1e-5)


def test_the_learned_part_is_that_of_the_model_without_label_names(
    folders: tuple[Path, Path], embedder: LightningDOTEmbedder
) -> None:
    state = {name: tensor for name, tensor in embedder.bundle.encoder.state_dict().items() if "label_" not in name}
    config = LightningDOTConfig.from_pretrained(folders[0])
    assert embedder.dim == embedder.bundle.files.dim == config.embedding_dim == config.projection_dim + DIM
    config.label_count = 0
    plain = LightningDOT(config).eval()
    plain.load_state_dict(state)
    bundle = replace(embedder.bundle, encoder=plain)
    regions = embedder.image_features([make_photo(1), make_photo(2)])
    without = LightningDOTEmbedder(bundle)
    np.testing.assert_allclose(embedder.encode_texts(TEXTS)[:, :-DIM], without.encode_texts(TEXTS), atol=1e-5)
    np.testing.assert_allclose(embedder.encode_features(regions)[:, :-DIM], without.encode_features(regions), atol=1e-5)


def test_a_vector_does_not_depend_on_its_batch(embedder: LightningDOTEmbedder) -> None:
    photos = [make_photo(seed) for seed in range(3)]
    np.testing.assert_allclose(embedder.encode_texts(TEXTS)[2], embedder.encode_texts(TEXTS[2:])[0], atol=1e-5)
    np.testing.assert_allclose(embedder.encode_images(photos)[1], embedder.encode_images(photos[1:2])[0], atol=1e-5)


def test_regions_of_another_extractor_are_refused(embedder: LightningDOTEmbedder, tiny) -> None:
    (plain,) = tiny.image_features([make_photo(1)])
    with pytest.raises(InputError, match=r"no label probabilities, model .* reads those of 5"):
        embedder.encode_images([plain])
    with pytest.raises(InputError, match=r"of 2 labels, model .* reads those of 5"):
        embedder.encode_images([replace(plain, label_probabilities=np.ones((10, 2), np.float32))])


def test_the_fingerprint_covers_the_classifier_and_region_data_stay_valid(
    folders: tuple[Path, Path], tmp_path: Path, tiny_model: str
) -> None:
    files = find_model(str(folders[0]))
    for name in ("model.safetensors", "labels.json"):
        copy_folder(folders[0], tmp_path / name)
        changed = tmp_path / name / "labels" / name
        data = bytearray(changed.read_bytes())
        data[-3] ^= 1
        changed.write_bytes(data)
        other = find_model(str(tmp_path / name))
        assert other.fingerprint != files.fingerprint
        assert other.own_reranker().fingerprint == files.own_reranker().fingerprint
    assert files.own_reranker().fingerprint == find_model(tiny_model).own_reranker().fingerprint


def test_another_list_of_names_keeps_the_sentence_encoder(folders: tuple[Path, Path], tmp_path: Path) -> None:
    copy_folder(folders[0], tmp_path / "model")
    (tmp_path / "names.json").write_text(json.dumps([name.upper() + "s" for name in NAMES]))
    labels = Labels(classifier=str(folders[0]), names=str(tmp_path / "names.json"), dim=5)
    add_labels(labels, None, tmp_path / "model", CAPTIONS)
    embedder = LightningDOTEmbedder(str(tmp_path / "model"), device="cpu")
    names = sentences(folders[1], [f"a photo of a {name.upper()}s" for name in NAMES])
    assert embedder.bundle.encoder.label_names is not None
    vectors, centred = embedder.bundle.encoder.label_names.vectors.numpy(), names - names.mean(0)
    assert vectors.shape == (5, 5)
    np.testing.assert_allclose(vectors @ vectors.T, centred @ centred.T, atol=1e-5)
    assert json.loads((tmp_path / "model" / "labels" / "labels.json").read_text())[0] == "DOGs"


@pytest.mark.parametrize(
    ("names", "message"),
    [(["one"], "has 1 names, and the classifier in .* knows 5"), ({"a": 1}, "not a JSON list of names"),
     (["a", "b", "", "c", "d"], "not a JSON list of names"), (None, "cannot be read as JSON")],
)  # fmt: skip
def test_names_that_do_not_fit_are_refused(
    folders: tuple[Path, Path], tmp_path: Path, names: object, message: str
) -> None:
    copy_folder(folders[0], tmp_path / "model")
    if names is not None:
        (tmp_path / "names.json").write_text(json.dumps(names))
    labels = Labels(classifier=str(folders[0]), names=str(tmp_path / "names.json"))
    with pytest.raises(UsageError, match=message):
        add_labels(labels, None, tmp_path / "model", CAPTIONS)


def test_a_sentence_encoder_that_was_trained_is_refused(
    folders: tuple[Path, Path], tmp_path: Path, tiny_model: str
) -> None:
    """The text encoder's second layer differs from the sentence encoder's, so both cannot be shared."""
    copy_folder(folders[0], tmp_path / "model")
    classifier = str(folders[0])
    with pytest.raises(UsageError, match="layer 2 differ"):
        add_labels(Labels(classifier=classifier, dim=8, shared_layers=2), str(folders[1]), tmp_path / "model", CAPTIONS)
    copy_folder(Path(tiny_model), tmp_path / "plain")
    with pytest.raises(UsageError, match="label_dim is 126, and the text encoder is 32 wide"):
        add_labels(Labels(classifier=classifier), None, tmp_path / "model", CAPTIONS)
    with pytest.raises(UsageError, match="name the sentence encoder"):
        add_labels(Labels(classifier=classifier), None, tmp_path / "plain", CAPTIONS)
    with pytest.raises(UsageError, match="has no classifier"):
        add_labels(Labels(classifier=tiny_model), None, tmp_path / "plain", CAPTIONS)


def test_a_classifier_of_other_labels_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    copy_folder(folders[0], tmp_path / "model")
    build_classifier(tmp_path / "model" / "labels", names=["dog", "cat"])
    with pytest.raises(ModelError, match=r"names of 5 labels, and the classifier in .* knows 2"):
        LightningDOTEmbedder(str(tmp_path / "model"), device="cpu").encode_images([make_photo(1)])


def test_regions_are_named_by_what_the_classifier_sees_around_their_centre(
    folders: tuple[Path, Path], embedder: LightningDOTEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert embedder.reranker is not None
    (regions,) = embedder.image_features([make_photo(1)])
    probabilities = np.full((5, len(NAMES)), 0.05, np.float32)  # the whole photo and 2 x 2 cells
    probabilities[[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]] = [0.99, 0.9, 0.8, 0.7, 0.5]
    boxes = np.zeros((4, 7), np.float32)
    boxes[:, :4] = [[0, 0, 0.4, 0.4], [0.6, 0, 1, 0.9], [0, 0.5, 0.5, 1], [0.9, 0.9, 1, 1]]
    placed = replace(regions.select(np.arange(4)), boxes=boxes, label_probabilities=probabilities)
    (kept,) = embedder.reranker.keep([placed])
    expected = [NAMES[1], NAMES[2], NAMES[3], None]
    assert list(embedder.reranker.explain("a dog", kept).names) == expected, "the fourth cell is not sure"
    embedder.reranker.check(kept)
    earlier = {name: kept[name] for name in ("features", "boxes", "confidence")}
    assert set(embedder.reranker.explain("a dog", earlier).names) == {None}
    np.testing.assert_array_equal(
        embedder.reranker.score(["a dog"] * 2, [kept, earlier]), embedder.reranker.score(["a dog"] * 2, [earlier] * 2)
    )


def test_regions_have_the_vectors_by_which_the_block_compares(seeing: Path) -> None:
    embedder = LightningDOTEmbedder(str(seeing), device="cpu")
    (regions,) = embedder.image_features([make_photo(1)])
    names = embedder.bundle.encoder.label_names
    assert names is not None
    assert regions.label_probabilities is not None
    whole = regions.label_probabilities[0] @ names.vectors.numpy()
    np.testing.assert_allclose(regions.features[0, -DIM:], whole, atol=1e-3)  # stored in half precision
    np.testing.assert_allclose(
        embedder.encode_features([regions])[0], embedder.encode_images([make_photo(1)])[0], atol=1e-5
    )
    assert embedder.reranker is not None
    (kept,) = embedder.reranker.keep([regions])
    assert np.isfinite(embedder.reranker.score(["a dog"], [kept])).all()


@pytest.mark.parametrize("name", ["model.safetensors", "labels.json", "vectors.npy"])
def test_region_data_depend_on_the_classifier_whose_features_they_have(seeing: Path, tmp_path: Path, name: str) -> None:
    copy_folder(seeing, tmp_path / "model")
    changed = tmp_path / "model" / "labels" / name
    data = bytearray(changed.read_bytes())
    data[-3] ^= 1
    changed.write_bytes(data)
    before, after = find_model(str(seeing)), find_model(str(tmp_path / "model"))
    assert after.fingerprint != before.fingerprint
    assert after.own_reranker().fingerprint != before.own_reranker().fingerprint


@pytest.mark.parametrize(
    ("data", "message"),
    [(None, "cannot be read"), (b"no array", "cannot be read"), (np.ones((3, 8), np.float16), "shape .3, 8."),
     (np.ones(5, np.float16), "shape .5,.")],
)  # fmt: skip
def test_damaged_vectors_are_refused(seeing: Path, tmp_path: Path, data: object, message: str) -> None:
    copy_folder(seeing, tmp_path / "model")
    file = tmp_path / "model" / "labels" / "vectors.npy"
    file.unlink()
    if isinstance(data, bytes):
        file.write_bytes(data)
    elif data is not None:
        np.save(file, data)
    with pytest.raises(ModelError, match=message):
        LightningDOTEmbedder(str(tmp_path / "model"), device="cpu").encode_images([make_photo(1)])


def test_other_names_keep_the_directions_that_the_networks_have_learned(seeing: Path, tmp_path: Path) -> None:
    """With directions of their own, the same names in another order would be other features."""
    copy_folder(seeing, tmp_path / "model")
    before = LightningDOTEmbedder(str(seeing), device="cpu").bundle.encoder.label_names
    (tmp_path / "names.json").write_text(json.dumps(NAMES[::-1]))
    labels = Labels(classifier=str(seeing), names=str(tmp_path / "names.json"), dim=DIM, cells=2)
    add_labels(labels, None, tmp_path / "model", CAPTIONS)
    embedder = LightningDOTEmbedder(str(tmp_path / "model"), device="cpu")
    after = embedder.bundle.encoder.label_names
    assert before is not None
    assert after is not None
    np.testing.assert_allclose(after.directions, before.directions, atol=1e-6)
    np.testing.assert_allclose(after.vectors, before.vectors.flip(0), atol=1e-5)
    stored = np.load(tmp_path / "model" / "labels" / "vectors.npy")
    np.testing.assert_allclose(stored, after.vectors, atol=1e-3)
    embedder.encode_images([make_photo(1)])
    with pytest.raises(UsageError, match="learned to read names of width 8"):
        add_labels(Labels(classifier=str(seeing), dim=4, cells=2), None, tmp_path / "model", CAPTIONS)


def test_features_need_a_model_that_reads_them(folders: tuple[Path, Path], tmp_path: Path) -> None:
    copy_folder(folders[0], tmp_path / "model")
    labels = Labels(classifier=str(folders[0]), dim=DIM, cells=2, features=True)
    with pytest.raises(UsageError, match=r"for which region_dim must be set: .* reads regions of 32 features"):
        add_labels(labels, None, tmp_path / "model", CAPTIONS)
