"""What starts at once must not load what it does not use."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "faiss", "langchain_core", "PIL", "redis", "tqdm"}


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import ldot_milvus", set()),
        ("import ldot_milvus.cli; ldot_milvus.cli.main(['--help'], standalone_mode=False)", set()),
        ("import ldot_milvus.workers.enqueue", set()),
        ("from ldot_milvus.workers import app", set()),
        ("import workers", set()),
        ("from ldot_milvus.ingest.ingestor import Ingestor", set()),
        ("from ldot_milvus import open_store; open_store('faiss:./nowhere', 'x').count()", set()),
    ],
)
def test_is_light(statement: str, allowed: set[str]) -> None:
    probe = f"{statement}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=120)
    import json

    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert not (loaded & HEAVY) - allowed


def test_public_names_are_there() -> None:
    import ldot_milvus

    for name in ldot_milvus.__all__:
        assert getattr(ldot_milvus, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = ldot_milvus.no_such_name
