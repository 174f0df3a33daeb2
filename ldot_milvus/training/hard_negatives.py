"""Hard negatives: what the model's own index finds near a pair and is wrong (LightningDOT, section 4.1)."""

from __future__ import annotations

import faiss
import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


def mine_hard_negatives(texts: Vectors, images: Vectors, owner: NDArray[np.int64], pool: int) -> NDArray[np.int32]:
    """The nearest wrong captions and photos of every photo.

    Args:
        texts: (C, dim) vectors of captions, in order of photo; ``owner`` (C,) is the photo of each.
        images: (N, dim) vectors of photos.
        pool: how many to find for a photo: half of them have captions near the photo, half are near its captions.

    Returns:
        (N, pool, 2): row of a photo, and which of its captions (-1 = any). Rows are -1 where there are too few photos.
    """
    found = np.full((len(images), pool, 2), -1, np.int32)
    first = np.searchsorted(owner, np.arange(len(images)))
    turns = np.arange(len(owner)) - first[owner]
    counts = np.bincount(owner, minlength=len(images))
    near_texts = _nearest(texts, images, pool + int(counts.max()))
    near_images = _nearest(images, texts, pool + 1)
    for photo in range(len(images)):
        others = [text for text in near_texts[photo].tolist() if text >= 0 and owner[text] != photo]
        by_photo = {int(owner[text]): int(turns[text]) for text in reversed(others)}  # the nearest caption stays
        nearest_first = list(dict.fromkeys(int(owner[text]) for text in others))
        own = near_images[first[photo] : first[photo] + counts[photo]]
        # Round by round: the nearest of every caption, the second nearest of every caption, ...
        seen = dict.fromkeys(image for image in own.T.flatten().tolist() if image not in (-1, photo))
        pairs = [(other, by_photo[other]) for other in nearest_first[: pool - pool // 2]]
        pairs += [(other, -1) for other in seen if other not in dict(pairs)][: pool - len(pairs)]
        if pairs:
            found[photo, : len(pairs)] = pairs
    return found


def _nearest(among: Vectors, queries: Vectors, count: int) -> NDArray[np.int64]:
    """(Q, count) rows of the largest dot products, -1 beyond what there is."""
    index = faiss.IndexFlatIP(among.shape[1])
    index.add(np.ascontiguousarray(among, np.float32))
    rows: NDArray[np.int64] = index.search(np.ascontiguousarray(queries, np.float32), count)[1]
    return rows
