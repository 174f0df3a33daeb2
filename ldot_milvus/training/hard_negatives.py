"""Hard negatives: wrong answers that the model ranks high for a pair (LightningDOT, section 4.1)."""

from __future__ import annotations

import faiss
import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


def mine_hard_negatives(texts: Vectors, images: Vectors, owner: NDArray[np.int64], pool: int) -> NDArray[np.int32]:
    """Find the nearest wrong captions and photos of every photo.

    Args:
        texts: (C, dim), vectors of captions, in order of photo.
        images: (N, dim), vectors of photos.
        owner: (C,), the index of each caption's photo.
        pool: number of hard negatives of a photo: one half have captions near the photo, the other half are photos
            near its captions.

    Returns:
        int32 (N, pool, 2): index of a photo, and of one of its captions (-1 = any). Missing entries are -1, if there
        are too few photos.
    """
    negatives = np.full((len(images), pool, 2), -1, np.int32)
    first = np.searchsorted(owner, np.arange(len(images)))
    turns = np.arange(len(owner)) - first[owner]
    counts = np.bincount(owner, minlength=len(images))
    near_texts = _nearest(texts, images, pool + int(counts.max()))
    near_images = _nearest(images, texts, pool + 1)
    for photo in range(len(images)):
        others = [text for text in near_texts[photo].tolist() if text >= 0 and owner[text] != photo]
        by_photo = {int(owner[text]): int(turns[text]) for text in reversed(others)}  # the nearest caption wins
        nearest_first = list(dict.fromkeys(int(owner[text]) for text in others))
        own = near_images[first[photo] : first[photo] + counts[photo]]
        # The nearest photo of every caption, then the second nearest of every caption, ...
        near_captions = dict.fromkeys(image for image in own.T.flatten().tolist() if image not in (-1, photo))
        pairs = [(other, by_photo[other]) for other in nearest_first[: pool - pool // 2]]
        pairs += [(other, -1) for other in near_captions if other not in dict(pairs)][: pool - len(pairs)]
        if pairs:
            negatives[photo, : len(pairs)] = pairs
    return negatives


def _nearest(candidates: Vectors, queries: Vectors, count: int) -> NDArray[np.int64]:
    """Return the indices (Q, count) of the candidates with the largest dot products, -1 if there are fewer."""
    index = faiss.IndexFlatIP(candidates.shape[1])
    index.add(np.ascontiguousarray(candidates, np.float32))
    rows: NDArray[np.int64] = index.search(np.ascontiguousarray(queries, np.float32), count)[1]
    return rows
