"""Settings, read from environment variables with the prefix ``LDOT_``."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Settings of the library, the commands and the workers; ``docs/settings.md`` describes each of them.

    The defaults suit a laptop: a local store, no broker, the packaged model.
    """

    model_config = SettingsConfigDict(env_prefix="LDOT_", extra="ignore")

    store: str = "faiss:./ldot-data"
    store_token: str | None = None
    collection: str = "images"
    model: str = "ldot-mini"
    reranker: str | None = None  # None: the model's own; "none": dot product alone
    region_store: str | None = None  # None: beside the store
    index: str = "auto"
    index_fallback: bool = True  # use the nearest CPU index type if the server has no GPU
    broker: str | None = None  # None: ingest in this process
    result_backend: str | None = None  # the journal; None: beside a local store, else the broker if it is Redis
    visibility_timeout: int = 600  # seconds until an unacknowledged chunk is delivered again
    device: str | None = None
    dtype: str | None = None
    log_format: Literal["text", "json"] = "text"  # of the workers
    allow_urls: bool = False
    max_pixels: PositiveInt = 178_956_970  # of a photo; Pillow's own limit
