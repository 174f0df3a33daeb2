"""Download models from the Hugging Face hub, once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ldot_milvus.errors import UsageError


def hub_folder(name: str, what: str, *, known: str = "", files: Sequence[str] | None = None) -> Path:
    """Return the local folder of a hub repository, downloading it if necessary.

    Args:
        name: hub id, ``owner/name``.
        what: "model" or "detector", for the message.
        known: other valid kinds of names, for the message.
        files: names of the files to download; None downloads all.

    Raises:
        UsageError: ``name`` is not a hub id, or the hub cannot be reached or has no such repository.
    """
    unknown = f"unknown {what} {name!r}: give {known}a folder, or a hub id (owner/name)"
    if name.count("/") != 1 or name.startswith(("/", ".")):
        raise UsageError(unknown)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=None if files is None else list(files)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        cause = str(error).splitlines()[0].split(". ")[0]
        raise UsageError(f"{unknown}; the hub reports: {cause}") from error
