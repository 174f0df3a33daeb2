"""Check of argument names: a misspelt filter must not be ignored, or an answer comes unfiltered."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from ldot_milvus.errors import UsageError

# What other retrievers, stores and re-rankers call the same.
SYNONYMS = {
    "collection_name": "collection", "index_name": "collection", "connection_args": "store", "uri": "store",
    "vectorstore": "store", "embedding": "model", "embeddings": "model", "embedding_function": "model",
    "top_k": "k", "top_n": "k", "limit": "k", "n_results": "k", "num_results": "k", "fetch_k": "rerank",
    "expr": "filter", "where": "filter", "partition": "namespace", "tenant": "namespace",
    "search_type": "search_kwargs", "score_threshold": "min_probability", "threshold": "min_probability",
}  # fmt: skip


def refuse_unknown(names: Iterable[str], known: Collection[str], owner: str) -> None:
    """Refuse names that are not known.

    Args:
        names: names of the arguments that were given.
        known: names of the arguments that exist.
        owner: what takes the arguments, for the message.

    Raises:
        UsageError: a name is unknown; the message names the nearest known one, or all.
    """
    for name in names:
        if name in known:
            continue
        near = SYNONYMS.get(name)
        if near not in known:
            near = next(iter(difflib.get_close_matches(name, known, n=1)), None)
        hint = f"did you mean {near!r}?" if near else f"it takes {', '.join(sorted(known))}"
        raise UsageError(f"{owner} takes no argument {name!r}: {hint}")
