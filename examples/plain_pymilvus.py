"""Query a collection with plain pymilvus, as an application of your own would.

    python examples/plain_pymilvus.py http://localhost:19530 images "a long red bus" "width >= 200 and height < 900"

The application relies on the collection's fields (docs/collection.md) and uses ldot-milvus only to encode the query.
With an empty text, it only filters.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from pymilvus import MilvusClient

from ldot_milvus import LightningDOTEmbedder

FIELDS = ["id", "source", "caption", "width", "height", "metadata"]


def search(client: MilvusClient, collection: str, text: str, where: str = "", k: int = 5) -> list[dict[str, Any]]:
    """Search photos by text.

    Args:
        client: a connected client.
        collection: name of the collection.
        text: the query; empty to return any photos that match ``where``.
        where: a Milvus filter expression; empty for all photos.
        k: largest number of photos.

    Returns:
        The fields of each photo and, unless ``text`` is empty, its score, best first.
    """
    condition = 'kind == "image"' + (f" and ({where})" if where else "")
    if not text:
        return list(client.query(collection, filter=condition, limit=k, output_fields=FIELDS, timeout=30))
    [matches] = client.search(
        collection,
        data=LightningDOTEmbedder("ldot-mini").encode_texts([text]).tolist(),
        anns_field="embedding",
        search_params={"metric_type": "IP"},
        filter=condition,
        limit=k,
        output_fields=FIELDS,
        timeout=30,
    )
    return [{**match["entity"], "score": match["distance"]} for match in matches]


def main(arguments: Sequence[str]) -> None:
    """Print the photos: ``ADDRESS COLLECTION TEXT [FILTER]``."""
    address, collection, text, *where = arguments
    for row in search(MilvusClient(address), collection, text, *where):
        print(f"{row.get('score', 0.0):7.3f}  {row['width']:5} x {row['height']:<5} {row['source']}  {row['metadata']}")


if __name__ == "__main__":
    main(sys.argv[1:])
