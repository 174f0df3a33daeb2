"""Models of the Hugging Face hub, fetched once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ldot_milvus.errors import UsageError


def hub_folder(name: str, what: str, *, known: str = "", files: Sequence[str] | None = None) -> Path:
    """Where a hub id's files lie on this machine.

    Args:
        name: ``owner/name``.
        what: "model" or "detector", for the message.
        known: what else could have been named, for the message.
        files: only these; None fetches all.

    Raises:
        UsageError: it is not a hub id, or the hub does not have it.
    """
    unknown = f"unknown {what} {name!r}: give {known}a folder, or a hub id (owner/name)"
    if name.count("/") != 1 or name.startswith(("/", ".")):
        raise UsageError(unknown)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=None if files is None else list(files)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        said = str(error).splitlines()[0].split(". ")[0]
        raise UsageError(f"{unknown}; the hub said: {said}") from error
