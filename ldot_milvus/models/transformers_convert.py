"""``ldot convert`` for published models in transformers' layout whose weights are pickled."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

from ldot_milvus.errors import ModelError
from ldot_milvus.models.lightningdot.convert import Conversion, check_paths
from ldot_milvus.models.registry import family_of
from ldot_milvus.models.transformers_layout import PREPROCESSOR, PROCESSOR, TOKENIZER, TransformersFiles
from ldot_milvus.weights import load_exactly, read_state


def is_transformers_checkpoint(source: str | Path) -> bool:
    """Whether a ``config.json`` beside a file of weights names a family in transformers' layout."""
    try:
        model_type = json.loads((Path(source).parent / "config.json").read_text()).get("model_type")
        family = family_of(str(model_type))
    except (OSError, ValueError, AttributeError):
        return False
    return family is not None and issubclass(family, TransformersFiles)


def convert_transformers(source: str | Path, target: str | Path) -> Conversion:
    """Write the weights of a pickled file as safetensors, with the other files of its folder that are read.

    Args:
        source: ``pytorch_model.bin`` (read by ``torch.load`` with ``weights_only``) in a model's folder.
        target: a new or empty folder.

    Raises:
        UsageError: ``source`` does not exist, or ``target`` is not empty.
        ModelError: the file contains more than tensors, or they do not fit the configuration.
    """
    import transformers

    source, target = Path(source), Path(target)
    check_paths(source, target)
    family = family_of(str(json.loads((source.parent / "config.json").read_text())["model_type"]))
    assert family is not None
    network = getattr(transformers, family.network)
    state = read_state(source)
    try:
        config = network.config_class.from_pretrained(source.parent)
        model, _ = load_exactly(
            partial(network.from_pretrained, None), str(source), config=config, state_dict=dict(state)
        )
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"{source} cannot be converted: {str(error).splitlines()[0]}") from error
    model.save_pretrained(target)
    for name in ("config.json", PREPROCESSOR, PROCESSOR, *TOKENIZER):
        if (source.parent / name).is_file():
            shutil.copy(source.parent / name, target / name)
    parameters = sum(weight.numel() for weight in model.parameters())
    dropped = sorted(state.keys() - model.state_dict().keys())
    return Conversion(family.network, parameters, dropped=dropped)
