"""The Celery application in a program whose parent process has loaded and used the model before it forks its pool."""

from __future__ import annotations

from ldot_milvus import load_embedder
from ldot_milvus.settings import Settings
from ldot_milvus.workers import app as app

embedder = load_embedder(Settings().model, device="cpu")
embedder.encode_texts(["a bus"] * 200)
