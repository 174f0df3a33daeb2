"""Weights that would run code when they are read, in a model's folder and anywhere else."""

from __future__ import annotations

import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ldot_milvus
from ldot_milvus import load_model
from ldot_milvus.errors import ModelError


class Harmful:
    def __reduce__(self) -> tuple:
        return (print, ("this must never be printed",))


@pytest.mark.parametrize("part", ["", "reranker", "regions"])
@pytest.mark.parametrize("content", ["harmful", "sound"])
def test_a_pickle_in_the_place_of_safetensors(
    part: str, content: str, tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers would take ``pytorch_model.bin``; here it is not even opened, however good it may be."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    weights = folder / part / "model.safetensors"
    state = load_file(weights)
    weights.unlink()
    if content == "sound":
        torch.save(state, folder / part / "pytorch_model.bin")
    else:
        (folder / part / "pytorch_model.bin").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(ModelError, match=r"no file named model\.safetensors"):
        _ = load_model(str(folder), device="cpu").extractor  # which is loaded when it is first needed
    assert "never" not in capsys.readouterr().out


def test_nothing_else_unpickles() -> None:
    """Published .pt and .bin files are read in one place, with ``weights_only``; nobody reads any other pickle."""
    package = Path(ldot_milvus.__file__).parent
    readers = {}
    for path in [
        *package.rglob("*.py"),
        *package.parent.glob("workers/*.py"),
        *package.parent.glob("integrations/*.py"),
    ]:
        text = path.read_text()
        found = re.findall(r"torch\.load\([^\n]*|pickle\.loads?\(|Unpickler\(|allow_pickle=True|joblib|dill", text)
        if found:
            readers[path.relative_to(package).as_posix()] = found
    assert readers.keys() == {"weights.py"}
    assert all("weights_only=True" in call for call in readers["weights.py"])
