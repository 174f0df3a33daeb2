"""Which class reads the files of which family, and where a name lies on this machine.

A new family is one module and one line of :data:`FAMILIES`, or one call of :func:`register_family`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from ldot_milvus.errors import ModelError, UsageError
from ldot_milvus.hub import hub_folder
from ldot_milvus.models.base import FilesOnDisk, ModelFiles, RerankerFiles, read_config

PACKAGED = Path(__file__).parents[1] / "pretrained"

FAMILIES = {
    "lightningdot": "ldot_milvus.models.lightningdot.files:LightningDOTFiles",
    "lightningdot-reranker": "ldot_milvus.models.lightningdot.files:LightningDOTRerankerFiles",
}
"""``model_type`` of a ``config.json`` to ``module:class``, a :class:`ModelFiles` or a :class:`RerankerFiles`."""

NO_RERANKER = "none"
"""The name by which a model's own re-ranker is left out."""


def register_family(model_type: str, files: str) -> None:
    """Make a family known.

    Args:
        model_type: as ``config.json`` says it.
        files: ``module:class``; the class reads the files, and the module is imported when a folder says this type.
    """
    FAMILIES[model_type] = files


def find_model(name: str) -> ModelFiles:
    """The files of a model by packaged name, folder or hub id (which is fetched once), without loading it.

    Raises:
        UsageError: no model of that name.
        ModelError: it is there, but of no family that embeds.
    """
    folder = _folder(name)
    family = _family(name, folder)
    if not issubclass(family, ModelFiles):
        raise ModelError(f"{name!r} is a re-ranker, not a model that embeds: name it with LDOT_RERANKER or --reranker")
    return family(name, folder)


def find_reranker(name: str | None, model: ModelFiles) -> RerankerFiles | None:
    """The files of the re-ranker for a model, without loading it.

    Args:
        name: None for the model's own, "none" for none, else a folder or hub id of a re-ranker, or of a model that has
            one.

    Raises:
        UsageError: no such re-ranker.
        ModelError: it is there, but of no family that re-ranks.
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
        raise UsageError(f"model {name!r} has no re-ranker: name another one, or 'none' for the dot product alone")
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
    place = FAMILIES.get(str(model_type))
    if place is None:
        raise ModelError(
            f"model {name!r} is of type {model_type!r}; the types that can be read are "
            f"{', '.join(map(repr, sorted(FAMILIES)))}: convert a published checkpoint first (ldot convert)"
        )
    module, _, attribute = place.partition(":")
    family = getattr(import_module(module), attribute)
    assert issubclass(family, FilesOnDisk)
    return family
