"""The models on this machine: those of the package, and those in the Hugging Face cache. Nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ldot_milvus.errors import ModelError, UsageError, reason
from ldot_milvus.models.base import ModelFiles, RerankerFiles, read_config
from ldot_milvus.models.catalogue import Kept, published
from ldot_milvus.models.registry import FAMILIES, PACKAGED, family_of

if TYPE_CHECKING:
    from huggingface_hub import CachedRevisionInfo


@dataclass(frozen=True)
class InstalledModel:
    """A model that can be used without the network.

    Attributes:
        name: packaged name or hub id.
        family: ``model_type`` of its ``config.json``.
        folder: where its files are.
        size: bytes of its files.
        settings: the environment variable to set.
        licence: as in the catalogue; None if it is not known.
        kept: what its re-ranker stores of a photo; None without one, or if it is not known.
        commit: of a model in the cache, 40 hex digits; None for a packaged one.
        refs: branches and tags of the commit.
        complete: False if there are no safetensors.
    """

    name: str
    family: str
    folder: Path
    size: int
    settings: str
    licence: str | None
    kept: Kept | None
    commit: str | None = None
    refs: tuple[str, ...] = ()
    complete: bool = True


def installed() -> list[InstalledModel]:
    """Return the models on this machine, the packaged ones first.

    Raises:
        UsageError: the cache cannot be read.
    """
    return [*_packaged(), *_cached()]


def cache_folder() -> Path:
    """Return the folder of the Hugging Face cache, which may not exist."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _packaged() -> list[InstalledModel]:
    found = []
    for config in sorted(PACKAGED.glob("*/config.json")):
        folder, name = config.parent, config.parent.name
        family = str(read_config(name, folder)["model_type"])
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        about = published(name)
        found.append(
            InstalledModel(
                name,
                family,
                folder,
                size,
                f"LDOT_MODEL={name}",
                about.licence if about else None,
                about.kept if about else None,
            )
        )
    return found


def _cached() -> list[InstalledModel]:
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        cache = scan_cache_dir(cache_folder())
    except CacheNotFound:
        return []
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else "it is a file"
        raise UsageError(f"the cache {cache_folder()} cannot be read ({why}): set HF_HUB_CACHE or HF_HOME") from error
    found = []
    for repository in sorted(cache.repos, key=lambda repository: repository.repo_id):
        if repository.repo_type == "model":
            revisions = sorted(repository.revisions, key=lambda revision: (not revision.refs, revision.commit_hash))
            found += [model for revision in revisions if (model := _model(repository.repo_id, revision)) is not None]
    return found


def _model(name: str, revision: CachedRevisionInfo) -> InstalledModel | None:
    """Return the model of a cached revision; None if it is of no registered family."""
    folder = revision.snapshot_path
    try:
        family = read_config(name, folder).get("model_type")
    except (ModelError, AttributeError):  # not a model, or a configuration that is not an object
        return None
    if family not in FAMILIES:
        return None
    about, refs = published(name), tuple(sorted(revision.refs))
    exact = name if "main" in refs else f"{name}@{refs[0] if refs else revision.commit_hash}"
    files = family_of(family)
    variable = "LDOT_RERANKER" if files is not None and issubclass(files, RerankerFiles) else "LDOT_MODEL"
    return InstalledModel(
        name, family, folder, revision.size_on_disk, f"{variable}={exact}", about.licence if about else None,
        about.kept if about else _kept(name, family, folder), revision.commit_hash, refs,
        any(file.file_name.endswith(".safetensors") for file in revision.files),
    )  # fmt: skip


def _kept(name: str, family: str, folder: Path) -> Kept | None:
    """Return what the re-ranker of a model that is not in the catalogue stores of a photo, as far as it is known."""
    from ldot_milvus.models.blip.files import BlipFiles

    files = family_of(family)
    if files is None or not issubclass(files, ModelFiles):
        return None
    return Kept(*BlipFiles(name, folder).states_shape) if issubclass(files, BlipFiles) else None
