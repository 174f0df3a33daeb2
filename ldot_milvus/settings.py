"""All settings, in one place; each is read from the environment with the prefix ``LDOT_``."""

from __future__ import annotations

from typing import Literal

from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Defaults suit a laptop: a local store, no broker, the packaged model. See ``docs/settings.md``."""

    model_config = SettingsConfigDict(env_prefix="LDOT_", extra="ignore")

    store: str = "faiss:./ldot-data"
    store_token: str | None = None
    collection: str = "images"
    model: str = "ldot-mini"
    reranker: str | None = None  # the model's own unless named; "none" for the dot product alone
    region_store: str | None = None  # beside a local store unless named
    index: str = "auto"
    index_fallback: bool = True  # take the nearest index without a GPU where the server has none
    broker: str | None = None  # none: ingest in this process
    result_backend: str | None = None  # the journal: beside a local store, else the broker itself where it is Redis
    visibility_timeout: int = 600
    device: str | None = None
    dtype: str | None = None
    log_format: Literal["text", "json"] = "text"  # of the workers
    allow_urls: bool = False
