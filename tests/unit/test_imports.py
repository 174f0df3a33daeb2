"""What starts at once must not load what it does not use."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    "torch",
    "transformers",
    "faiss",
    "langchain_core",
    "PIL",
    "pymilvus",
    "redis",
    "tqdm",
    "mcp",
    "llama_index",
    "haystack",
}


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import ldot_milvus; assert 'celery' not in __import__('sys').modules", set()),
        ("import ldot_milvus.cli; ldot_milvus.cli.main(['--help'], standalone_mode=False)", set()),
        ("import ldot_milvus.cli; ldot_milvus.cli.main(['models', '--json'], standalone_mode=False)", set()),
        ("import ldot_milvus.workers.enqueue", set()),
        ("from ldot_milvus.workers import app", set()),
        ("from ldot_milvus import Client; assert 'numpy' not in __import__('sys').modules", set()),
        ("import workers", set()),
        ("from ldot_milvus.ingest.ingestor import Ingestor", set()),
        ("from ldot_milvus import open_store; open_store('faiss:./nowhere', 'x').count()", set()),
        ("from ldot_milvus.stores.registry import parse_address; parse_address('http://host')", set()),
    ],
)
def test_is_light(statement: str, allowed: set[str]) -> None:
    probe = f"{statement}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=120)
    import json

    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert not (loaded & HEAVY) - allowed


PUBLIC = {
    "Client", "CollectionNotFound", "Embedder", "Failure", "FilterError", "Hit", "Ingestor", "InputError", "LdotError",
    "LightningDOTEmbedder", "LightningDOTEmbeddings", "LightningDOTRetriever", "Match", "ModelError", "ModelMismatch",
    "Record", "RegionStoreNotFound", "Regions", "Report", "Reranker", "Retriever", "RowNotFound", "Settings", "Source",
    "StoreError",
    "TrainingError", "UnknownField", "UsageError", "VectorStore", "__version__", "expand", "load_embedder",
    "load_metadata", "load_model", "load_reranker", "open_store", "register_family", "register_store",
}  # fmt: skip
"""Other people's programs import these: a name that goes or changes is a new major version (docs/releasing.md)."""


def test_public_names_are_these_and_there() -> None:
    import ldot_milvus

    assert set(ldot_milvus.__all__) == PUBLIC
    assert ldot_milvus.__all__ == sorted(ldot_milvus.__all__)
    for name in ldot_milvus.__all__:
        assert getattr(ldot_milvus, name) is not None
    assert set(dir(ldot_milvus)) == PUBLIC
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = ldot_milvus.no_such_name


def test_promised_names_outside_of_the_package_itself() -> None:
    """The contracts name these modules too; they are aliases."""
    import integrations.langchain
    import ldot_milvus
    import ldot_milvus.model

    assert integrations.langchain.LightningDOTRetriever is ldot_milvus.LightningDOTRetriever
    assert integrations.langchain.LightningDOTEmbeddings is ldot_milvus.LightningDOTEmbeddings
    for name in ("LightningDOT", "LightningDOTConfig", "CrossAttentionReranker", "LightningDOTForPreTraining"):
        assert getattr(ldot_milvus.model, name).__name__ == name


@pytest.mark.parametrize("name", ["haystack", "llama_index", "mcp", "pymilvus_model"])
def test_short_names_of_the_adapters(name: str) -> None:
    from importlib import import_module

    alias, module = import_module(f"integrations.{name}"), import_module(f"ldot_milvus.integrations.{name}")
    assert alias.__all__
    for public in alias.__all__:
        assert getattr(alias, public) is getattr(module, public)


def test_the_former_module_of_the_ingestor_says_where_it_is_now() -> None:
    import ldot_milvus

    with pytest.warns(DeprecationWarning, match="from ldot_milvus import Ingestor"):
        from ldot_milvus.ingestion import Ingestor
    assert Ingestor is ldot_milvus.Ingestor


def test_every_error_has_a_code_of_its_own() -> None:
    from ldot_milvus import errors

    found = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.LdotError)]
    codes = {error.__name__: error.code for error in found}
    assert codes == {
        "LdotError": "error", "UsageError": "usage", "FilterError": "filter", "InputError": "input",
        "ModelError": "model", "TrainingError": "training", "StoreError": "store",
        "CollectionNotFound": "collection_not_found", "ModelMismatch": "model_mismatch",
        "RegionStoreNotFound": "region_store_not_found", "RowNotFound": "row_not_found",
    }  # fmt: skip
    assert set(codes) <= PUBLIC
