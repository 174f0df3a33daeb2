"""Find a model's folder by its name, and the class that reads it by its family.

A new family takes one module and one line in :data:`FAMILIES`, or one call of :func:`register_family`.
"""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from ldot_milvus.errors import ModelError, UsageError
from ldot_milvus.hub import hub_folder
from ldot_milvus.models.base import FilesOnDisk, ModelFiles, RerankerFiles, read_config

PACKAGED = Path(__file__).parents[1] / "pretrained"

FAMILIES = {
    "edje-reranker": "ldot_milvus.models.edje.files:EdjeFiles",
    "lightningdot": "ldot_milvus.models.lightningdot.files:LightningDOTFiles",
    "lightningdot-reranker": "ldot_milvus.models.lightningdot.files:LightningDOTRerankerFiles",
}
"""Maps the ``model_type`` of a ``config.json`` to ``module:class``, a :class:`ModelFiles` or :class:`RerankerFiles`."""

NO_RERANKER = "none"
"""The re-ranker name that turns re-ranking off."""


def register_family(model_type: str, files: str) -> None:
    """Register a model family.

    Args:
        model_type: the ``model_type`` in the family's ``config.json``.
        files: ``module:class``, a subclass of :class:`ModelFiles` or :class:`RerankerFiles`. The module is imported
            when a model of this type is first opened.
    """
    FAMILIES[model_type] = files


def find_model(name: str) -> ModelFiles:
    """Find the files of an embedding model, without loading it.

    Args:
        name: packaged name, folder or hub id. A hub model is downloaded once.

    Raises:
        UsageError: no model has that name.
        ModelError: the folder belongs to a re-ranker or to an unknown family.
    """
    folder = _folder(name)
    family = _family(name, folder)
    if not issubclass(family, ModelFiles):
        raise ModelError(f"{name!r} is a re-ranker, not an embedding model: name it with LDOT_RERANKER or --reranker")
    return family(name, folder)


def find_reranker(name: str | None, model: ModelFiles) -> RerankerFiles | None:
    """Find the files of a re-ranker, without loading it.

    Args:
        name: None for the model's own re-ranker, "none" for no re-ranker, else the folder or hub id of a re-ranker or
            of a model with a re-ranker.
        model: the model whose image features the re-ranker reads.

    Returns:
        The files; None if ``name`` is "none" or the model has no re-ranker of its own.

    Raises:
        UsageError: no re-ranker has that name.
        ModelError: the folder belongs to an unknown family.
    """
    if name is None:
        return model.own_reranker()
    if name == NO_RERANKER:
        return None
    folder = _folder(name)
    family = _family(name, folder)
    if issubclass(family, RerankerFiles):
        return family(name, folder, model)
    own = find_model(name).own_reranker()
    if own is None:
        raise UsageError(f"model {name!r} has no re-ranker: name another one, or 'none' to use the dot product alone")
    return type(own)(name, own.folder, model)


def _folder(name: str) -> Path:
    packaged = PACKAGED / name
    if packaged.parent == PACKAGED and (packaged / "config.json").exists():
        return packaged
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.absolute()
    known = ", ".join(sorted(path.parent.name for path in PACKAGED.glob("*/config.json"))) or "none"
    return hub_folder(name, "model", known=f"a packaged name ({known}), ")


def _family(name: str, folder: Path) -> type[Any]:
    model_type = read_config(name, folder).get("model_type")
    class_path = FAMILIES.get(str(model_type))
    if class_path is None:
        raise ModelError(
            f"model {name!r} has the unsupported type {model_type!r}; supported types are "
            f"{', '.join(map(repr, sorted(FAMILIES)))}: convert a published checkpoint with ldot convert"
        )
    family = resolve_name(class_path)
    assert issubclass(family, FilesOnDisk)
    return family
