"""Which regions a word of a text found: the words, the range of the weights, and the attention that they come from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertSelfAttention

from ldot_milvus import LightningDOTEmbedder, UsageError, load_embedder
from ldot_milvus.errors import InputError
from ldot_milvus.model import CrossAttentionReranker, RerankerConfig
from ldot_milvus.models.attention import attention_weights
from ldot_milvus.models.explanation import Explains, Explanation
from tests import families
from tests.unit.models.test_pixels import jpeg
from tests.unit.models.test_reranker import regions

SENTENCES = {
    "A long, red bus!": ["A", "long", "red", "bus"],
    "two  dogs\tin the\nsnow": ["two", "dogs", "in", "the", "snow"],
    "Überraschung im Café": ["Überraschung", "im", "Café"],
    "a well-known dog's life": ["a", "well", "known", "dog", "s", "life"],
    "🐶 dog": ["dog"],
    "...": [],
}


@pytest.fixture(scope="module", params=["alignment", "joint"])
def reranker(request: pytest.FixtureRequest, tiny: LightningDOTEmbedder):
    if request.param == "alignment":
        return LightningDOTEmbedder(tiny.bundle).reranker  # in torch
    config = RerankerConfig(bert_config=tiny.bundle.reranker.config.bert_config, region_dim=32, max_text_length=40)
    return LightningDOTEmbedder(replace(tiny.bundle, reranker=CrossAttentionReranker(config).eval())).reranker


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory):
    return load_embedder(str(families.blip(tmp_path_factory.mktemp("blip") / "model")), device="cpu")


def check(explanation: Explanation, text: str, words: list[str], count: int) -> None:
    assert [word.text for word in explanation.words] == words
    assert all(text[word.start : word.end] == word.text for word in explanation.words)
    assert explanation.regions.shape == (count, 4)
    assert explanation.weights.shape == (len(words), count)
    assert explanation.weights.min(initial=0) >= 0
    assert explanation.weights.max(initial=0) <= 1
    assert len(explanation.names) == count


@pytest.mark.parametrize("text", SENTENCES)
def test_words_are_those_of_the_text(reranker, text: str) -> None:
    assert isinstance(reranker, Explains)
    (kept,) = reranker.keep([regions(6)])
    explanation = reranker.explain(text, kept)
    check(explanation, text, SENTENCES[text], 6)
    np.testing.assert_allclose(explanation.regions, kept["boxes"][:, :4])


@pytest.mark.parametrize("text", SENTENCES)
def test_blip_compares_words_with_patches(blip, text: str) -> None:
    (kept,) = blip.reranker.keep(blip.image_features([jpeg(80, 60)]))
    patches = len(kept["states"]) - 1
    explanation = blip.reranker.explain(text, kept)
    check(explanation, text, SENTENCES[text], patches)
    np.testing.assert_allclose(explanation.regions[:, 2:] - explanation.regions[:, :2], patches**-0.5, rtol=1e-5)
    tokens = [len(word.tokens) for word in explanation.words]
    assert (explanation.weights.sum(1) < np.array(tokens) + 1e-4).all()  # the state of the whole photo has the rest


def test_a_long_text_is_told_as_far_as_it_is_read(reranker) -> None:
    (kept,) = reranker.keep([regions(3)])
    explanation = reranker.explain("w " * 100, kept)
    assert len(explanation.words) == 38  # 40 tokens with [CLS] and [SEP]


def test_an_empty_text_and_damaged_region_data_are_refused(reranker) -> None:
    (kept,) = reranker.keep([regions(3)])
    with pytest.raises(UsageError):
        reranker.explain(" ", kept)
    with pytest.raises(InputError):
        reranker.explain("dog", {"boxes": kept["boxes"]})


def test_weights_of_alignment_are_cosines_above_the_mean_and_of_attention_shares(reranker) -> None:
    (kept,) = reranker.keep([regions(5)])
    weights = reranker.explain("two dogs", kept).weights
    if reranker.model.alignment is None:
        tokens = [len(word.tokens) for word in reranker.explain("two dogs", kept).words]
        assert (weights.sum(1) < np.array(tokens) + 1e-4).all()  # the words have the rest
        return
    tokens, words = reranker._texts.words("two dogs", 40)
    with torch.inference_mode():
        states = reranker.model.encode_words(*reranker._texts.padded([tokens]))[0]
    cosines = torch.nn.functional.cosine_similarity(
        states[:, None], torch.from_numpy(kept["features"].astype(np.float32))[None], dim=-1
    )
    above = (cosines.clip(0) - cosines.clip(0).mean(1, keepdim=True)).clip(0).numpy()
    expected = [above[list(word.tokens)].max(0) for word in words]
    assert np.max(expected) > 0
    np.testing.assert_allclose(weights, expected, atol=1e-4)


def test_attention_is_that_of_transformers() -> None:
    torch.manual_seed(0)
    config = BertConfig(hidden_size=24, num_attention_heads=3, attn_implementation="eager")
    attention = BertSelfAttention(config).eval()
    states = torch.randn(2, 7, 24)
    with torch.inference_mode():
        expected = attention(states)[1].mean(1)
        torch.testing.assert_close(attention_weights(attention, states, states), expected)
    torch.testing.assert_close(expected.sum(-1), torch.ones(2, 7))


def test_json_has_the_attributes_with_plain_numbers(reranker) -> None:
    import json

    (kept,) = reranker.keep([regions(2)])
    values = json.loads(json.dumps(reranker.explain("a dog", kept).to_dict()))
    assert values["words"] == [{"text": "a", "start": 0, "end": 1}, {"text": "dog", "start": 2, "end": 5}]
    assert [len(row) for row in values["weights"]] == [2, 2]
    assert [len(box) for box in values["regions"]] == [4, 4]
    assert values["names"] == [None, None]


def test_a_reranker_without_places_does_not_explain() -> None:
    from ldot_milvus.models.edje.reranker import EdjeTokenReranker
    from ldot_milvus.models.lightningdot.text_side import GraphReranker

    assert not issubclass(EdjeTokenReranker, Explains)
    assert issubclass(GraphReranker, Explains)
