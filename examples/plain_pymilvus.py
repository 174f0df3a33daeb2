"""An application of your own that queries the collection with plain pymilvus.

    python examples/plain_pymilvus.py http://localhost:19530 images "a long red bus" "width >= 200 and height < 900"

It needs the collection's fields (docs/collection.md) and, for the query's vector, the embedding function: nothing else
of ldot-milvus. With an empty text it only filters, as SQL's WHERE would.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from pymilvus import MilvusClient

from ldot_milvus import LightningDOTEmbedder

FIELDS = ["id", "source", "caption", "width", "height", "metadata"]


def search(client: MilvusClient, collection: str, text: str, where: str = "", k: int = 5) -> list[dict[str, Any]]:
    """The k best photos for a text; ``where`` is a filter in Milvus's own language."""
    condition = 'kind == "image"' + (f" and ({where})" if where else "")
    if not text:
        return list(client.query(collection, filter=condition, limit=k, output_fields=FIELDS, timeout=30))
    [answers] = client.search(
        collection,
        data=LightningDOTEmbedder("ldot-mini").encode_texts([text]).tolist(),
        anns_field="embedding",
        search_params={"metric_type": "IP"},
        filter=condition,
        limit=k,
        output_fields=FIELDS,
        timeout=30,
    )
    return [{**answer["entity"], "score": answer["distance"]} for answer in answers]


def main(arguments: Sequence[str]) -> None:
    """Print what was found."""
    address, collection, text, *where = arguments
    for row in search(MilvusClient(address), collection, text, *where):
        print(f"{row.get('score', 0.0):7.3f}  {row['width']:5} x {row['height']:<5} {row['source']}  {row['metadata']}")


if __name__ == "__main__":
    main(sys.argv[1:])
