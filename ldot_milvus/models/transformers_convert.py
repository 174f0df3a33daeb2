"""``ldot convert`` for published models in transformers' layout whose weights are pickled."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

from ldot_milvus.errors import ModelError
from ldot_milvus.models.lightningdot.convert import Conversion
from ldot_milvus.models.registry import family_of
from ldot_milvus.models.transformers_layout import PREPROCESSOR, PROCESSOR, TOKENIZER, TransformersFiles
from ldot_milvus.weights import load_exactly, read_state


def transformers_family(source: str | Path) -> type[TransformersFiles] | None:
    """Return the family in transformers' layout that a ``config.json`` beside a file of weights names; None without."""
    try:
        model_type = json.loads((Path(source).parent / "config.json").read_text()).get("model_type")
        family = family_of(str(model_type))
    except (OSError, ValueError, AttributeError):
        return None
    return family if family is not None and issubclass(family, TransformersFiles) else None


def convert_transformers(source: Path, target: Path, family: type[TransformersFiles]) -> Conversion:
    """Write the weights of a pickled file as safetensors, with the other files of its folder that are read.

    Args:
        source: ``pytorch_model.bin`` (read by ``torch.load`` with ``weights_only``) in a model's folder.
        target: a new or empty folder.
        family: what :func:`transformers_family` returned.

    Raises:
        ModelError: the file contains more than tensors, or they do not fit the configuration.
    """
    import transformers

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
