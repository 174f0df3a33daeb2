"""Conversion of the authors' checkpoints in every published layout, and refusal of other files."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from ldot_milvus.errors import ModelError, UsageError
from ldot_milvus.model import CrossAttentionReranker, LightningDOT, LightningDOTConfig, RerankerConfig
from ldot_milvus.models.lightningdot.checkpoint_layouts import convert_dual_encoder, convert_reranker
from ldot_milvus.models.lightningdot.convert import CASED, VOCABULARY, convert
from tests.conftest import Run

GOLDEN = Path(__file__).parents[2] / "golden" / "lightningdot"
SIZES = json.loads((GOLDEN / "config.json").read_text())
HEADS = {"num_attention_heads": SIZES["num_attention_heads"]}

State = dict[str, Tensor]


def published(name: str) -> State:
    content = torch.load(GOLDEN / name, weights_only=True)
    return content.get("model_dict", content)


def old_spelling(state: State) -> State:
    """As BERT's first checkpoints spell it, with the buffer of its first code."""
    spelt = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in state.items()
    }
    prefixes = [
        name.removesuffix("word_embeddings.weight") for name in state if name.endswith("word_embeddings.weight")
    ]
    return spelt | {f"{prefix}position_ids": torch.arange(64)[None] for prefix in prefixes}


def uniter_prefix(state: State) -> State:
    return {f"uniter.{name[5:]}" if name.startswith("bert.") else name: tensor for name, tensor in state.items()}


LAYOUTS: dict[str, Callable[[], object]] = {
    "pre-trained": lambda: published("pretrained.pt"),
    "fine-tuned": lambda: torch.load(GOLDEN / "finetuned.pt", weights_only=True),
    "pre-trained, old spelling": lambda: old_spelling(published("pretrained.pt")),
    "fine-tuned, old spelling": lambda: {"model_dict": old_spelling(published("finetuned.pt"))},
    "re-ranker": lambda: published("reranker.pt"),
    "re-ranker, uniter prefix": lambda: uniter_prefix(published("reranker.pt")),
    "re-ranker, old spelling": lambda: old_spelling(uniter_prefix(published("reranker.pt"))),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_keeps_its_bits(layout: str, tmp_path: Path) -> None:
    torch.save(LAYOUTS[layout](), tmp_path / "x.pt")
    report = convert(tmp_path / "x.pt", tmp_path / "out", config=HEADS)
    if layout.startswith("re-ranker"):
        model: torch.nn.Module = CrossAttentionReranker.from_pretrained(tmp_path / "out")
        expected = convert_reranker(published("reranker.pt")).state
    else:
        model = LightningDOT.from_pretrained(tmp_path / "out")
        expected = convert_dual_encoder(published("finetuned.pt")).state
    state = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    assert report.parameters == sum(tensor.numel() for tensor in expected.values())
    card = (tmp_path / "out" / "README.md").read_text()
    assert hashlib.sha256((tmp_path / "x.pt").read_bytes()).hexdigest() in card
    model.save_pretrained(tmp_path / "again")
    again = (tmp_path / "again" / "model.safetensors").read_bytes()
    assert again == (tmp_path / "out" / "model.safetensors").read_bytes()


def test_every_tensor_is_reported(tmp_path: Path) -> None:
    torch.save(old_spelling(published("pretrained.pt")), tmp_path / "x.pt")
    report = convert(tmp_path / "x.pt", tmp_path / "out", config=HEADS)
    source = torch.load(tmp_path / "x.pt", weights_only=True)
    assert report.renamed.keys() | set(report.dropped) == source.keys()
    assert "cls.predictions.decoder.weight" in report.dropped
    assert "bert.img_model.bert.embeddings.position_ids" in report.dropped
    assert report.renamed["bert.txt_model.bert.embeddings.LayerNorm.gamma"] == "text_model.embeddings.LayerNorm.weight"


def test_a_pretrained_uniter_ranks_by_its_matching_head(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in published("reranker.pt").items() if not name.startswith("rank_output")}
    torch.save(state, tmp_path / "x.pt")
    report = convert(tmp_path / "x.pt", tmp_path / "out", config=HEADS)
    model = CrossAttentionReranker.from_pretrained(tmp_path / "out")
    assert torch.equal(model.rank_output.weight[0], state["itm_output.weight"][1])
    assert report.renamed["itm_output.weight[1]"] == "rank_output.weight"


def changed(change: Callable[[State], object]) -> State:
    state = published("finetuned.pt")
    change(state)
    return state


LAYER = "txt_model.bert.encoder.layer.1.intermediate.dense.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(LAYER), r"text_model\.encoder\.layer\.1\.intermediate\.dense\.weight is missing"),
        (lambda state: state.update({"img_model.extra.weight": torch.ones(2)}), r"img_model\.extra\.weight is not of"),
        (lambda state: state.update({LAYER: state[LAYER].T.contiguous()}), r"has shape \(48, 96\), not \(96, 48\)"),
        (lambda state: state.pop("img_model.bert.img_embeddings.mask_embedding.weight"), "determines the model's size"),
    ],
    ids=["missing", "extra", "transposed", "sizeless"],
)
def test_a_checkpoint_that_is_not_whole_is_refused(change: Callable, message: str, tmp_path: Path) -> None:
    torch.save(changed(change), tmp_path / "x.pt")
    with pytest.raises(ModelError, match=message):
        convert(tmp_path / "x.pt", tmp_path / "out", config=HEADS)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


class Harmful:
    def __reduce__(self) -> tuple:
        return (print, ("this must never be printed",))


@pytest.mark.parametrize("content", [Harmful(), {"a": 1}, {}, [1, 2], {"some.tensor": torch.ones(1)}, b""])
def test_what_is_no_checkpoint_is_refused(content: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if isinstance(content, dict | list):
        torch.save(content, tmp_path / "x.pt")
    else:
        (tmp_path / "x.pt").write_bytes(b"not torch" if content == b"" else pickle.dumps(content))
    with pytest.raises(ModelError, match=r"x\.pt|no tensor"):
        convert(tmp_path / "x.pt", tmp_path / "out", config=HEADS)
    assert "never" not in capsys.readouterr().out


def test_an_unknown_number_of_heads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="num_attention_heads"):
        convert(GOLDEN / "finetuned.pt", tmp_path / "out")


def test_a_folder_that_is_not_empty_is_unchanged(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        convert(GOLDEN / "finetuned.pt", tmp_path, config=HEADS)
    with pytest.raises(UsageError, match="no such file"):
        convert(tmp_path / "gone.pt", tmp_path / "out")


def test_the_published_tokenizer_is_written(tmp_path: Path) -> None:
    """A cased vocabulary of the published size gets bert-base-cased's WordPiece."""
    words = VOCABULARY.read_text().splitlines()
    assert len(words) == CASED
    state = published("finetuned.pt")
    name = "txt_model.bert.embeddings.word_embeddings.weight"
    state[name] = state[name].new_zeros(CASED, SIZES["hidden_size"])
    torch.save(state, tmp_path / "x.pt")
    convert(tmp_path / "x.pt", tmp_path / "out", config=HEADS)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer("Two Dogs in Zürich, unhappily")["input_ids"]
    assert ids[0] == 101
    assert ids[-1] == 102
    assert tokenizer.convert_ids_to_tokens(ids)[1:3] == ["Two", "Dogs"]
    assert all(words[i] == token for i, token in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True))


def test_the_published_sizes() -> None:
    """Facts of the paper's models: 110.7 M and 112.3 M parameters, and UNITER-base beside them."""
    with torch.device("meta"):
        model = LightningDOT(LightningDOTConfig())
        count = {name: sum(p.numel() for part in parts for p in getattr(model, part).parameters())
                 for name, parts in {"text": ("text_model", "text_projection"),
                                     "image": ("image_model", "image_projection")}.items()}  # fmt: skip
        reranker = CrossAttentionReranker(RerankerConfig())
    assert round(count["text"] / 1e6, 1) == 110.7
    assert round(count["image"] / 1e6, 1) == 112.3
    assert sum(p.numel() for p in reranker.parameters()) > 109e6


def test_the_command(run: Run, tmp_path: Path) -> None:
    (tmp_path / "heads.json").write_text(json.dumps(HEADS))
    done = run("ldot", "convert", str(GOLDEN / "pretrained.pt"), "out", "--config", "heads.json")
    assert done.returncode == 0, done.stderr
    assert "dropped  itm_output.weight" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("out: dual encoder of ")
    refused = run("ldot", "convert", str(GOLDEN / "pretrained.pt"), "out")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
