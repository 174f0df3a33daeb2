"""Settings, read from environment variables with the prefix ``LDOT_``."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, PositiveInt
from pydantic_settings import BaseSettings, SettingsConfigDict

QUEUE = "ldot"
"""The default of ``LDOT_QUEUE``. Messages in flight depend on it."""


def _checked_queue(name: str) -> str:
    # The second queue of "photos" is "photos.changes", which no other deployment may have as its first.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) or name.endswith(".changes"):
        raise ValueError(
            f"LDOT_QUEUE is {name!r}: give 1 to 100 letters, digits, dots, dashes and underscores, beginning with a "
            "letter or digit and not ending in .changes"
        )
    return name


class Settings(BaseSettings):
    """Settings of the library, the commands and the workers; ``docs/settings.md`` describes each of them.

    The defaults suit a laptop: a local store, no broker, the packaged model.
    """

    # Compose files set a variable to nothing where its value is optional.
    model_config = SettingsConfigDict(env_prefix="LDOT_", extra="ignore", env_ignore_empty=True)

    store: str = "faiss:./ldot-data"
    store_alias: str | None = None  # other addresses of a worker's store, separated by commas
    store_token: str | None = None
    collection: str = "images"
    model: str = "ldot-mini"
    reranker: str | None = None  # None: the model's own; "none": dot product alone
    region_store: str | None = None  # None: beside the store
    region_dtype: Literal["float16", "int8"] = "float16"  # in which region data are written
    region_store_alias: str | None = None  # other addresses of a worker's region store, separated by commas
    index: str = "auto"
    index_fallback: bool = True  # use the nearest CPU index type if the server has no GPU
    broker: str | None = None  # None: ingest in this process
    queue: Annotated[str, AfterValidator(_checked_queue)] = QUEUE
    result_backend: str | None = None  # the journal; None: beside a local store, else the broker if it is Redis
    visibility_timeout: int = 600  # seconds until an unacknowledged chunk is delivered again
    device: str | None = None
    dtype: str | None = None
    log_format: Literal["text", "json"] = "text"  # of the workers
    allow_urls: bool = False
    max_pixels: PositiveInt = 178_956_970  # of a photo; Pillow's own limit
