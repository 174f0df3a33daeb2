"""Find a model's folder by its name, and the class that reads it by its family.

A new family takes one module and one line in :data:`FAMILIES`, or one call of :func:`register_family`.
"""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from ldot_milvus.arguments import path_text
from ldot_milvus.errors import ModelError, UsageError
from ldot_milvus.hub import hub_folder, hub_source
from ldot_milvus.models.base import FilesOnDisk, ModelFiles, RerankerFiles, read_config

PACKAGED = Path(__file__).parents[1] / "pretrained"

FAMILIES = {
    "blip": "ldot_milvus.models.blip.files:BlipFiles",
    "chinese_clip": "ldot_milvus.models.contrastive.files:ChineseClipFiles",
    "clip": "ldot_milvus.models.contrastive.files:ClipFiles",
    "edje-reranker": "ldot_milvus.models.edje.files:EdjeFiles",
    "lightningdot": "ldot_milvus.models.lightningdot.files:LightningDOTFiles",
    "lightningdot-reranker": "ldot_milvus.models.lightningdot.files:LightningDOTRerankerFiles",
    "metaclip_2": "ldot_milvus.models.contrastive.files:MetaClip2Files",
    "siglip": "ldot_milvus.models.contrastive.files:SiglipFiles",
}
"""Maps the ``model_type`` of a ``config.json`` to ``module:class``, a :class:`ModelFiles` or :class:`RerankerFiles`."""

UNSUPPORTED = {
    "siglip2": "SigLIP 2 with photos of their own aspect ratio (NaFlex) is not supported: take a checkpoint of a fixed "
    "resolution, such as google/siglip2-base-patch16-224",
}
"""Maps a ``model_type`` that people may try to what to do instead."""

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


def family_of(model_type: str) -> type[Any] | None:
    """Return the class that reads the files of a ``model_type``; None if it is not registered."""
    class_path = FAMILIES.get(model_type)
    if class_path is None:
        return None
    family = resolve_name(class_path)
    assert issubclass(family, FilesOnDisk)
    return family


def find_model(name: str) -> ModelFiles:
    """Find the files of an embedding model, without loading it.

    Args:
        name: packaged name, folder or hub id, with an optional ``@REVISION``. A hub model is downloaded once.

    Raises:
        UsageError: no model has that name.
        ModelError: the folder belongs to a re-ranker or to an unknown family, or lacks files.
    """
    name = path_text(name)
    family, folder = _found(name)
    name = absolute_name(name)
    if not issubclass(family, ModelFiles):
        raise ModelError(f"{name!r} is a re-ranker, not an embedding model: name it with LDOT_RERANKER or --reranker")
    files = family(name, folder)
    files.source = hub_source(name, folder) if _local_folder(name) is None else None
    files.check()
    return files


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
        ModelError: the folder belongs to an unknown family or lacks files, or the re-ranker cannot be combined with the
            model.
    """
    if name is None:
        return model.own_reranker()
    if name == NO_RERANKER:
        return None
    name = path_text(name)
    family, folder = _found(name)
    name = absolute_name(name)
    if issubclass(family, RerankerFiles):
        files: RerankerFiles = family(name, folder, model)
    else:
        own = find_model(name).own_reranker()
        if own is None:
            raise UsageError(
                f"model {name!r} has no re-ranker: name another one, or 'none' to use the dot product alone"
            )
        files = type(own)(name, own.folder, model)
    files.check()
    return files


def absolute_name(name: str) -> str:
    """Return the absolute path of a model's folder, which names it in every working directory; other names as they are.

    Args:
        name: packaged name, folder or hub id.
    """
    folder = _local_folder(name)
    return name if folder is None or folder.parent == PACKAGED else str(folder)


def _found(name: str) -> tuple[type[Any], Path]:
    """Return a model's family and folder."""
    if not name.strip():
        raise UsageError(
            f"the name of the model is empty: give a packaged name ({_packaged_names()}), a folder or a hub id"
        )
    folder = _local_folder(name)
    if folder is not None:
        return _family(name, folder), folder
    known = f"a packaged name ({_packaged_names()}), "
    # The configuration alone first: it names the family, which knows what it reads of the rest.
    family = _family(name, hub_folder(name, "model", known=known, files=["config.json"]))
    return family, hub_folder(name, "model", known=known, files=family.hub_files or None)


def _packaged_names() -> str:
    return ", ".join(sorted(path.parent.name for path in PACKAGED.glob("*/config.json"))) or "none"


def _local_folder(name: str) -> Path | None:
    packaged = PACKAGED / name
    if packaged.parent == PACKAGED and (packaged / "config.json").exists():
        return packaged
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.absolute()
    return None


def _family(name: str, folder: Path) -> type[Any]:
    model_type = read_config(name, folder).get("model_type")
    family = family_of(str(model_type))
    if family is None and model_type in UNSUPPORTED:
        raise ModelError(f"model {name!r}: {UNSUPPORTED[model_type]}")
    if family is None:
        raise ModelError(
            f"model {name!r} has the unsupported type {model_type!r}; supported types are "
            f"{', '.join(map(repr, sorted(FAMILIES)))}: convert a published checkpoint with ldot convert"
        )
    return family
