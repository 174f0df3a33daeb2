"""The vectors of the texts that were searched for last, which a service is often asked for again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from ldot_milvus.forks import Lock
from ldot_milvus.models.base import Array, Embedder


class QueryVectors:
    """A cache of the vectors of texts, by the fingerprint of the model. Instances are thread-safe.

    Args:
        size: number of vectors kept; the one that was not used for longest goes first. 0 keeps none.
    """

    def __init__(self, size: int = 0) -> None:
        self._size = size
        self._vectors: OrderedDict[tuple[str, str], Array] = OrderedDict()
        self._lock = Lock()

    def encode(self, embedder: Embedder, texts: Iterable[str]) -> dict[str, Array]:
        """Return the vector of each text, float32 (dim,); those that are not kept are encoded together.

        Raises:
            UsageError: a text is empty.
        """
        found = {text: self._kept(embedder, text) for text in texts}
        missing = [text for text, vector in found.items() if vector is None]
        encoded = dict(zip(missing, embedder.encode_texts(missing), strict=True)) if missing else {}
        with self._lock:
            for text, vector in encoded.items():
                if self._size:
                    self._vectors[embedder.fingerprint, text] = vector.copy()  # not a view of the whole batch
            while len(self._vectors) > self._size:
                self._vectors.popitem(last=False)
        return {text: encoded[text] if vector is None else vector for text, vector in found.items()}

    def _kept(self, embedder: Embedder, text: str) -> Array | None:
        if not self._size:
            return None
        key = embedder.fingerprint, text
        with self._lock:
            vector = self._vectors.get(key)
            if vector is not None:
                self._vectors.move_to_end(key)
            return vector
