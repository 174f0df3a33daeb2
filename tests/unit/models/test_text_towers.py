"""Text encoders other than BERT, for other languages than English."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, XLMRobertaTokenizer

from ldot_milvus import LightningDOTEmbedder
from ldot_milvus.errors import ModelError
from ldot_milvus.evaluation.datasets import Pair
from ldot_milvus.evaluation.evaluate import evaluate
from ldot_milvus.model import CrossAttentionReranker, LightningDOT, LightningDOTConfig, RerankerConfig
from ldot_milvus.regions import Regions
from tests.tolerance import assert_recall, both_bounds

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TOWERS = {
    "xlm-roberta": {**SIZES, "max_position_embeddings": 80, "pad_token_id": 1},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "bert": SIZES,
}
SENTENCES = ["ein Hund im Schnee", "deux chiens", "dva psi ve sněhu", "雪地里的两只狗", "a dog"]


@pytest.fixture(scope="module")
def tokenizer() -> XLMRobertaTokenizer:
    letters = sorted({letter for sentence in SENTENCES for letter in sentence.replace(" ", "▁")})
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    return XLMRobertaTokenizer(vocab=[(piece, -1.0) for piece in [*special, *letters, "<mask>"]])


def a_model(kind: str, tokenizer: XLMRobertaTokenizer, folder: Path) -> LightningDOT:
    torch.manual_seed(0)
    config = LightningDOTConfig(
        text_config={"model_type": kind, "vocab_size": len(tokenizer), **TOWERS[kind]}, image_config=SIZES,
        region_dim=8, projection_dim=12, max_text_length=40,
    )  # fmt: skip
    model = LightningDOT(config).eval()
    for name, weight in model.named_parameters():
        if weight.dim() > 1 and "LayerNorm" not in name:
            weight.data.normal_(0, 0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", TOWERS)
def test_saved_loaded_and_evaluated(kind: str, tokenizer: XLMRobertaTokenizer, tmp_path: Path) -> None:
    model = a_model(kind, tokenizer, tmp_path)
    assert model.config.text_config.model_type == kind
    embedder = LightningDOTEmbedder(str(tmp_path), device="cpu")
    together = embedder.encode_texts(SENTENCES)
    alone = np.concatenate([embedder.encode_texts([sentence]) for sentence in SENTENCES])
    np.testing.assert_allclose(together, alone, atol=1e-5, rtol=2e-6)  # padding changes nothing
    assert np.unique(together.round(4), axis=0).shape == (len(SENTENCES), 12)
    again = LightningDOT.from_pretrained(tmp_path)
    assert all(torch.equal(ours, theirs) for ours, theirs in
               zip(model.state_dict().values(), again.state_dict().values(), strict=True))  # fmt: skip

    rng = np.random.default_rng(0)
    photos = [Regions(rng.normal(size=(4, 8)).astype(np.float32), rng.random((4, 7), np.float32),
                      np.ones(4, np.float32)) for _ in SENTENCES]  # fmt: skip
    pairs = [Pair(f"{n}", lambda photo=photo: photo, [sentence])
             for n, (photo, sentence) in enumerate(zip(photos, SENTENCES, strict=True))]  # fmt: skip
    figures = evaluate(embedder, pairs)
    scores = together @ embedder.encode_images(photos).T
    assert_recall(figures, both_bounds(scores, np.arange(len(photos))))


@pytest.mark.parametrize("kind", ["xlm-roberta", "distilbert"])
def test_the_states_are_those_of_transformers_own_model(
    kind: str, tokenizer: XLMRobertaTokenizer, tmp_path: Path
) -> None:
    model = a_model(kind, tokenizer, tmp_path)
    theirs = AutoModel.from_config(AutoConfig.for_model(kind, vocab_size=len(tokenizer), **TOWERS[kind])).eval()
    missing = theirs.load_state_dict(model.text_model.state_dict(), strict=False).missing_keys
    assert all(name.startswith("pooler.") for name in missing)
    ids = torch.tensor(tokenizer(SENTENCES[:1])["input_ids"])
    with torch.inference_mode():
        ours = model.text_states(ids, torch.ones_like(ids))
        torch.testing.assert_close(ours, theirs(input_ids=ids).last_hidden_state)


def test_a_tokenizer_of_another_vocabulary_is_refused(tokenizer: XLMRobertaTokenizer, tmp_path: Path) -> None:
    a_model("bert", tokenizer, tmp_path)
    CrossAttentionReranker(RerankerConfig(bert_config={**SIZES, "vocab_size": 20}, region_dim=8)).save_pretrained(
        tmp_path / "reranker"
    )
    with pytest.raises(ModelError, match="entries and its re-ranker reads 20"):
        LightningDOTEmbedder(str(tmp_path), device="cpu")


def test_an_unknown_type_is_refused(tokenizer: XLMRobertaTokenizer, tmp_path: Path) -> None:
    a_model("bert", tokenizer, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["model_type"] = "no-such"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="no-such"):
        LightningDOTEmbedder(str(tmp_path), device="cpu")
