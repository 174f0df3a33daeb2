"""Download models from the Hugging Face hub, once."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ldot_milvus.errors import UsageError, first_line

ANSWER_SECONDS = 10.0
"""Seconds to wait for the hub's first answer. Its client limits the requests for files itself."""


def hub_folder(name: str, what: str, *, known: str = "", files: Sequence[str] | None = None) -> Path:
    """Return the local folder of a hub repository, downloading the files that the hub's cache lacks.

    Args:
        name: hub id, ``owner/name``, optionally with a branch, tag, commit or pull request: ``owner/name@refs/pr/5``.
        what: "model" or "detector", for the message.
        known: other valid kinds of names, for the message.
        files: names and patterns of the files to download; None downloads all.

    Raises:
        UsageError: ``name`` is not a hub id, the hub has no such repository or revision or refuses it, it cannot be
            reached and the cache has no complete copy, or the files cannot be written.
    """
    repository, at, revision = name.partition("@")
    unknown = f"unknown {what} {name!r}: give {known}a folder, or a hub id (owner/name or owner/name@REVISION)"
    if repository.count("/") != 1 or repository.startswith(("/", ".")) or (at and not revision):
        raise UsageError(unknown)
    try:
        return _downloaded(repository, revision, None if files is None else tuple(files))
    except (
        Exception
    ) as error:  # its HTTP library, whose errors come through, differs between versions of the hub's client
        raise UsageError(_explained(error, what, repository, revision) or f"{unknown}; {first_line(error)}") from error


def hub_source(name: str, folder: Path) -> str:
    """Return the exact name of a downloaded repository, ``owner/name@commit``.

    Args:
        name: the hub id, with or without a revision.
        folder: what :func:`hub_folder` returned for it.
    """
    return f"{name.partition('@')[0]}@{folder.name}"


@cache
def _downloaded(repository: str, revision: str, files: tuple[str, ...] | None) -> Path:
    """Download once a process: a branch that moves meanwhile would give one process two models of one name."""
    from huggingface_hub import constants, errors, snapshot_download

    options: dict[str, Any] = {"revision": revision} if revision else {}
    silence = None if constants.HF_HUB_OFFLINE else _silence(repository, options)
    options["allow_patterns"] = None if files is None else list(files)
    try:
        return Path(snapshot_download(repository, local_files_only=silence is not None, **options))
    except errors.LocalEntryNotFoundError as error:
        if silence is None:
            raise
        raise error from silence


def _silence(repository: str, options: dict[str, Any]) -> Exception | None:
    """Return the exception with which the hub does not answer in time; None if it answers, whatever.

    The first request of ``snapshot_download`` is this one, without a limit.
    """
    from huggingface_hub import HfApi

    try:
        HfApi().repo_info(repository, timeout=ANSWER_SECONDS, **options)
    except Exception as error:
        return error if "timeout" in type(error).__name__.lower() else None
    return None


def _explained(error: Exception, what: str, repository: str, revision: str) -> str | None:
    """Say in one line what failed and what to do; None if ``error`` says that the name is no hub id."""
    from huggingface_hub import constants, errors

    the = f"{what} {repository + (f'@{revision}' if revision else '')!r}"
    if isinstance(error, errors.HFValidationError):
        return None
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{the} is gated: accept its terms on {constants.ENDPOINT}/{repository}, and log in with hf auth login or "
            "set HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"{the}: the repository has no revision {revision or 'main'!r}: give a branch, a tag, a commit or "
            f"refs/pr/NUMBER of {constants.ENDPOINT}/{repository}"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"unknown {the}: {constants.ENDPOINT} has no such repository, or it is private: check the spelling, or log "
            "in with hf auth login"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        if constants.HF_HUB_OFFLINE:
            return (
                f"{the} is not complete in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to download "
                "it: unset HF_HUB_OFFLINE once, or give a folder"
            )
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        return (
            f"{the} is not complete in the cache, and the hub at {constants.ENDPOINT} does not answer "
            f"({type(cause).__name__}: {first_line(cause)}): check the network and HTTPS_PROXY, or give "
            "a folder"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{the} does not fit on the disk of the cache {constants.HF_HUB_CACHE}: free space there, or "
            "set HF_HOME to another disk"
        )
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return (
            f"{the}: the cache {constants.HF_HUB_CACHE} cannot be written ({error.strerror}): set HF_HOME to a folder "
            "that can"
        )
    return (
        f"{the} cannot be downloaded from {constants.ENDPOINT} ({type(error).__name__}: {first_line(error)}): try "
        "again, check the network and HTTPS_PROXY, or give a folder"
    )
