"""``ldot convert``: tell by its tensors which family a checkpoint belongs to, and convert it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldot_milvus.errors import UsageError
from ldot_milvus.models.edje.convert import convert_edje, is_edje
from ldot_milvus.models.lightningdot.convert import Conversion, check_paths, convert_content
from ldot_milvus.models.transformers_convert import convert_transformers, transformers_family
from ldot_milvus.weights import read_content


def convert(
    source: str | Path,
    target: str | Path,
    *,
    config: Mapping[str, Any] | None = None,
    pretraining: bool = False,
    detector: str | None = None,
    vocabulary: str | Path | None = None,
) -> Conversion:
    """Convert the checkpoint ``source`` to the folder ``target``.

    Args:
        source, target, config, pretraining, detector: see :func:`ldot_milvus.models.lightningdot.convert.convert`, and
            for an EDJE re-ranker :func:`ldot_milvus.models.edje.convert.convert_edje`. A file beside the
            ``config.json`` of a family in transformers' layout takes no options.
        vocabulary: the vocabulary of an EDJE re-ranker.

    Raises:
        UsageError: ``source`` does not exist, ``target`` is not empty, or an option belongs to another family.
        ModelError: the checkpoint has an unknown layout, or missing, unknown or misshapen tensors.
    """
    source, target = Path(source).expanduser(), Path(target).expanduser()
    check_paths(source, target)
    family = transformers_family(source)
    if family is not None:
        if pretraining or detector is not None or vocabulary is not None or config:
            raise UsageError(f"{source} has its configuration beside it: remove the options")
        return convert_transformers(source, target, family)
    content = read_content(source)
    if not is_edje(content):
        if vocabulary is not None:
            raise UsageError(f"{source} is no EDJE re-ranker: --vocab is for those alone, remove it")
        return convert_content(source, target, content, config=config, pretraining=pretraining, detector=detector)
    if pretraining or detector is not None:
        raise UsageError(f"{source} is an EDJE re-ranker: it has no --detector and is not pre-trained here, remove it")
    words = None if vocabulary is None else Path(vocabulary).expanduser()
    return convert_edje(source, target, content, config=config or {}, vocabulary=words)
