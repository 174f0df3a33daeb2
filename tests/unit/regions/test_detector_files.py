"""A detector's files: every published tensor fits, and other files are refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from ldot_milvus.errors import ModelError, UsageError
from ldot_milvus.regions import BottomUpExtractor
from ldot_milvus.regions.bottom_up import Detector, DetectorConfig
from ldot_milvus.regions.bottom_up.weights import ANCHORS, load_detector

GOLDEN = Path(__file__).parents[2] / "golden" / "bottom_up"


def test_the_published_size() -> None:
    """Every tensor of the public checkpoint, by name and shape."""
    published = json.loads((GOLDEN / "state_dict_full.json").read_text())
    with torch.device("meta"):
        detector = Detector(DetectorConfig.from_yaml(GOLDEN / "config_full.yaml"))
    state = detector.state_dict()
    assert {name: list(tensor.shape) for name, tensor in state.items()} == published
    assert len(published) == 640
    assert sum(parameter.numel() for parameter in detector.parameters()) == 65_439_870
    assert DetectorConfig.from_yaml(GOLDEN / "config_full.yaml") == DetectorConfig()


def copied(folder: Path, change: Callable[[dict], object], *, file: str = "pytorch_model.bin") -> Path:
    """The golden detector with other tensors."""
    folder.mkdir(exist_ok=True)
    shutil.copy(GOLDEN / "config.yaml", folder)
    state = torch.load(GOLDEN / "pytorch_model.bin", weights_only=True)
    change(state)
    if file.endswith(".safetensors"):
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / file)
    else:
        torch.save(state, folder / file)
    return folder


CONV = "backbone.res4.7.conv2.weight"


def rename(state: dict, old: str, new: str) -> None:
    state[new] = state.pop(old)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(CONV), rf'missing: "{CONV}"'),
        (lambda state: rename(state, CONV, "backbone.res4.7.conv9.weight"), rf'missing: "{CONV}".*conv9'),
        (lambda state: state.update({"head.weight": torch.ones(1)}), r'not of this model: "head\.weight"'),
        (lambda state: state.update({CONV: state[CONV][:1]}), rf'another shape: "{CONV}"'),
        (lambda state: state.pop("backbone.stem.conv1.norm.running_mean"), r"stem\.conv1\.norm\.running_mean"),
    ],
    ids=["missing", "renamed", "extra", "cut", "no mean"],
)
def test_incomplete_weights_are_refused_by_name(change: Callable, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        load_detector(copied(tmp_path / "x", change))


def drop_optional(state: dict) -> None:
    for name in [name for name in state if name.endswith("num_batches_tracked") or name == ANCHORS]:
        del state[name]


def counters_as_vectors(state: dict) -> None:
    for name in [name for name in state if name.endswith("num_batches_tracked")]:
        state[name] = state[name].reshape(1)


@pytest.mark.parametrize("change", [drop_optional, counters_as_vectors])
@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_what_is_optional_may_be_missing(change: Callable, file: str, tmp_path: Path) -> None:
    found, golden = (
        load_detector(copied(tmp_path / "x", change, file=file)).state_dict(),
        load_detector(GOLDEN).state_dict(),
    )
    for name in golden:
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(found[name], golden[name], atol=1e-4, rtol=0)


def with_config(folder: Path, name: str, value: object) -> Path:
    copied(folder, lambda state: None)
    content = yaml.safe_load((GOLDEN / "config.yaml").read_text())
    *parents, last = name.split(".")
    inner = content
    for parent in parents:
        inner = inner[parent]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("resnets.stride_in_1x1", False, "stride_in_1x1 is False; only True"),
        ("roi_box_head.res5halve", True, "res5halve is True"),
        ("input.format", "RGB", "format is 'RGB'"),
        ("resnets.depth", 18, "depth is 18"),
        ("roi_heads.num_classes", None, r"no roi_heads\.num_classes"),
        ("rpn.nms_thresh", "high", "could not convert"),
        ("roi_heads.nms_thresh_test", [], "nms_thresh_test is empty"),
    ],
)
def test_a_configuration_of_another_detector_is_refused(name: str, value: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        BottomUpExtractor.from_pretrained(with_config(tmp_path / "x", name, value))


def test_limits_that_a_configuration_lacks_are_the_published_ones(tmp_path: Path) -> None:
    folder = with_config(tmp_path / "x", "max_detections", None)
    assert DetectorConfig.from_yaml(folder / "config.yaml").most == 36


def test_a_hub_id_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(name: str, **options: object) -> str:
        asked.append((name, options))
        return str(GOLDEN)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert BottomUpExtractor.from_pretrained("some/detector").dim == 256
    patterns = ["config.yaml", "model.safetensors", "pytorch_model.bin"]
    assert asked == [("some/detector", {"allow_patterns": patterns, "local_files_only": False})]


def test_folders_without_a_detector_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no weights"):
        BottomUpExtractor.from_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"nothing")
    for content in (None, "a: ["):
        if content is not None:
            (tmp_path / "config.yaml").write_text(content)
        with pytest.raises(ModelError, match=r"config\.yaml cannot be read"):
            BottomUpExtractor.from_pretrained(tmp_path)
    shutil.copy(GOLDEN / "config.yaml", tmp_path)
    with pytest.raises(ModelError, match="cannot be read as plain tensors"):
        BottomUpExtractor.from_pretrained(tmp_path)
    with pytest.raises(UsageError, match="unknown detector 'nowhere'"):
        BottomUpExtractor.from_pretrained("nowhere")
