"""Int8 storage of weights, and refusal of weights that do not fit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldot_milvus.errors import ModelError
from ldot_milvus.model import CrossAttentionReranker, LightningDOT, LightningDOTConfig, RerankerConfig
from ldot_milvus.tensors import SHARED, read_tensors
from ldot_milvus.weights import WEIGHTS_FILE, save_quantized, store_apart


def test_int8_is_a_quarter_of_the_size_and_nearly_the_same(tiny_model: str, tmp_path: Path) -> None:
    model = LightningDOT.from_pretrained(tiny_model)
    save_quantized(model, tmp_path, keep=("text_projection",))
    again = LightningDOT.from_pretrained(tmp_path)
    stored = load_file(tmp_path / WEIGHTS_FILE)
    kinds = {name: tensor.dtype for name, tensor in stored.items()}
    assert kinds["text_model.embeddings.word_embeddings.weight"] == torch.int8
    assert kinds["image_model.img_embeddings.LayerNorm.weight"] == torch.float32
    for name, weight in model.state_dict().items():
        rows = weight.flatten(1) if weight.dim() > 1 else weight.reshape(-1, 1)
        step = rows.abs().amax(1, keepdim=True) / 127
        assert ((again.state_dict()[name].reshape(rows.shape) - rows).abs() <= step / 2 + 1e-7).all(), name
    # Dequantised weights quantise to themselves: loading and saving again loses nothing more.
    save_quantized(again, tmp_path / "twice", keep=("text_projection",))
    for name, tensor in load_file(tmp_path / "twice" / WEIGHTS_FILE).items():
        torch.testing.assert_close(tensor, stored[name], rtol=1e-6, atol=0)


@pytest.mark.parametrize("fault", ["missing", "extra", "transposed"])
def test_weights_that_do_not_fit_are_refused_by_name(tiny_model: str, tmp_path: Path, fault: str) -> None:
    state = load_file(Path(tiny_model) / WEIGHTS_FILE)
    name = "image_projection.3.weight"
    if fault == "missing":
        del state[name]
    elif fault == "extra":
        name = "image_projection.9.weight"
        state[name] = torch.zeros(3)
    else:
        state[name] = state[name].T.contiguous()
    save_file(state, tmp_path / WEIGHTS_FILE, metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((Path(tiny_model) / "config.json").read_text())
    words = {"missing": "missing", "extra": "not of this model", "transposed": "of another shape"}
    with pytest.raises(ModelError, match=rf"{words[fault]}: \"{name}\""):
        LightningDOT.from_pretrained(tmp_path)


def test_header_says_int8(tiny_model: str, tmp_path: Path) -> None:
    save_quantized(LightningDOT.from_pretrained(tiny_model), tmp_path)
    head = (tmp_path / WEIGHTS_FILE).read_bytes()
    length = int.from_bytes(head[:8], "little")
    assert json.loads(head[8 : 8 + length])["__metadata__"]["ldot_storage"] == "int8"


def test_equal_weights_are_equal_files(sharing: tuple[LightningDOT, CrossAttentionReranker, Path]) -> None:
    """A fingerprint is a digest of files, and safetensors orders the header's entries at random."""
    model, part, folder = sharing
    before = [(place / WEIGHTS_FILE).read_bytes() for place in (folder, folder / "part")]
    umask = os.umask(0)
    os.umask(umask)
    for _ in range(8):
        save_quantized(model, folder)
        save_quantized(part, folder / "part", part=True)
        assert [(place / WEIGHTS_FILE).read_bytes() for place in (folder, folder / "part")] == before
    assert (folder / WEIGHTS_FILE).stat().st_mode & 0o777 == 0o666 & ~umask


WORDS = "embeddings.word_embeddings.weight"
TWICE = "image_model.encoder.layer.1.intermediate.dense.weight"


BODY = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 156,
    "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture
def sharing(tmp_path: Path) -> tuple[LightningDOT, CrossAttentionReranker, Path]:
    """A stored model with a matrix that it has twice, and a part that has the model's word embeddings too."""
    model = LightningDOT(LightningDOTConfig(text_config=BODY, image_config=BODY, region_dim=32))
    part = CrossAttentionReranker(RerankerConfig(bert_config=BODY, region_dim=32, scoring="alignment"))
    layers = model.image_model.encoder.layer
    layers[1].load_state_dict(layers[0].state_dict())
    part.bert.embeddings.load_state_dict(model.text_model.embeddings.state_dict())
    save_quantized(model, tmp_path)
    save_quantized(part, tmp_path / "part", part=True)
    return model, part, tmp_path


def test_equal_matrices_are_stored_once(sharing: tuple[LightningDOT, CrossAttentionReranker, Path]) -> None:
    model, part, folder = sharing
    assert TWICE not in load_file(folder / WEIGHTS_FILE)
    assert f"bert.{WORDS}" not in load_file(folder / "part" / WEIGHTS_FILE)
    for network, place in ((model, folder), (part, folder / "part")):
        by_torch = type(network).from_pretrained(place).state_dict()
        by_numpy = read_tensors(place / WEIGHTS_FILE, by_torch)
        assert by_numpy is not None
        for name, weight in network.state_dict().items():
            rows = weight.flatten(1) if weight.dim() > 1 else weight.reshape(-1, 1)
            step = rows.abs().amax(1, keepdim=True) / 127
            assert ((by_torch[name].reshape(rows.shape) - rows).abs() <= step / 2 + 1e-7).all(), name
            torch.testing.assert_close(torch.from_numpy(by_numpy[name]), by_torch[name], rtol=1e-6, atol=0)


def test_a_part_outlives_a_change_of_its_model(
    sharing: tuple[LightningDOT, CrossAttentionReranker, Path],
) -> None:
    """Training writes another model over a copy of the one that it started from."""
    model, part, folder = sharing
    before = type(part).from_pretrained(folder / "part").state_dict()
    store_apart(folder / "part")
    store_apart(folder / "part")  # nothing is left to do
    store_apart(folder / "nowhere")
    torch.nn.init.normal_(model.text_model.embeddings.word_embeddings.weight)
    model.save_pretrained(folder)
    after = type(part).from_pretrained(folder / "part").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_part_stored_alone_shares_nothing(sharing: tuple[LightningDOT, CrossAttentionReranker, Path]) -> None:
    _, part, folder = sharing
    save_quantized(part, folder / "alone" / "part", part=True)
    CrossAttentionReranker.from_pretrained(folder / "alone" / "part")


@pytest.mark.parametrize("read", [CrossAttentionReranker.from_pretrained,
                                  lambda folder: read_tensors(folder / WEIGHTS_FILE, [f"bert.{WORDS}"])])  # fmt: skip
@pytest.mark.parametrize(
    ("shared", "message"),
    [
        (None, "copy the whole model"),
        ('{"a": ["/etc/model.safetensors", "b"]}', "refers to /etc"),
        ('{"a": ["../../model.safetensors", "b"]}', "refers to"),
        ('{"a": "model.safetensors"}', "cannot be read"),
        ("[1]", "cannot be read"),
        ("{", "cannot be read"),
    ],
)
def test_a_shared_matrix_that_cannot_be_read(
    read: Callable[[Path], Any], shared: str | None, message: str,
    sharing: tuple[LightningDOT, CrossAttentionReranker, Path], tmp_path: Path,
) -> None:  # fmt: skip
    """A part without its model, and references to other files, which a model from the internet might have."""
    target = tmp_path / "elsewhere" / "part"
    target.mkdir(parents=True)
    for file in (tmp_path / "part").iterdir():
        target.joinpath(file.name).write_bytes(file.read_bytes())
    if shared is not None:
        state = load_file(target / WEIGHTS_FILE)
        save_file(state, target / WEIGHTS_FILE, metadata={"format": "pt", "ldot_storage": "int8", SHARED: shared})
    with pytest.raises(ModelError, match=message):
        read(target)
