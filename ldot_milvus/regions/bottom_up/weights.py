"""Load the published checkpoint into the network; tensors that do not fit are refused by name."""

from __future__ import annotations

from pathlib import Path

import torch

from ldot_milvus.errors import ModelError
from ldot_milvus.regions.bottom_up.boxes import cell_anchors
from ldot_milvus.regions.bottom_up.configuration import DetectorConfig
from ldot_milvus.regions.bottom_up.network import Detector
from ldot_milvus.weights import read_state, refuse_misfits

CONFIG = "config.yaml"
FILES = ("model.safetensors", "pytorch_model.bin")
OPTIONAL = ".num_batches_tracked"
"""Counters of training that are not used here; some checkpoints store them as (1,), some do not store them."""

ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"
"""The anchors. Some checkpoints lack them; they are then computed from the configuration."""


def detector_files(folder: Path) -> tuple[Path, Path]:
    """Return the paths of a detector's configuration and weights.

    Raises:
        ModelError: the folder contains no weights.
    """
    path = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if path is None:
        raise ModelError(f"{folder} has no weights: add {' or '.join(FILES)}")
    return folder / CONFIG, path


def load_detector(folder: Path) -> Detector:
    """Load the network from a folder with ``config.yaml`` and ``model.safetensors`` or ``pytorch_model.bin``.

    Raises:
        ModelError: a file is missing or unreadable, or tensors are missing, unknown or of another shape. The message
            names them.
    """
    settings, path = detector_files(folder)
    config = DetectorConfig.from_yaml(settings)
    given = {name: tensor for name, tensor in read_state(path).items() if not name.endswith(OPTIONAL)}
    with torch.device("meta"):
        detector = Detector(config)
    state = {name: tensor for name, tensor in detector.state_dict().items() if not name.endswith(OPTIONAL)}
    if ANCHORS not in given:
        given[ANCHORS] = cell_anchors(config.anchor_sizes, config.anchor_ratios)
    refuse_misfits(
        str(path),
        missing=state.keys() - given.keys(),
        unknown=given.keys() - state.keys(),
        misshapen=[name for name in state.keys() & given.keys() if given[name].shape != state[name].shape],
    )
    detector.to_empty(device="cpu")
    detector.load_state_dict({name: tensor.float() for name, tensor in given.items()}, strict=False)
    return detector
