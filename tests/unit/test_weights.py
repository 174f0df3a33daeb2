"""Int8 storage of weights, and refusal of weights that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldot_milvus.errors import ModelError
from ldot_milvus.model import LightningDOT
from ldot_milvus.weights import WEIGHTS_FILE, save_quantized


def test_int8_is_a_quarter_of_the_size_and_nearly_the_same(tiny_model: str, tmp_path: Path) -> None:
    model = LightningDOT.from_pretrained(tiny_model)
    save_quantized(model, tmp_path, keep=("text_projection",))
    again = LightningDOT.from_pretrained(tmp_path)
    stored = load_file(tmp_path / WEIGHTS_FILE)
    kinds = {name: tensor.dtype for name, tensor in stored.items()}
    assert kinds["text_model.embeddings.word_embeddings.weight"] == torch.int8
    assert kinds["image_model.img_embeddings.LayerNorm.weight"] == torch.float32
    for name, weight in model.state_dict().items():
        rows = weight.flatten(1) if weight.dim() > 1 else weight[:, None]
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
