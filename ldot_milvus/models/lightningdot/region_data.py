"""The region data of an image: what LightningDOT's re-rankers keep and read, without torch.

They are ``features`` float16 (n, d), ``boxes`` float32 (n, 7) and ``confidence`` float16 (n,). With ``region_input:
features`` in the configuration, the features are the extractor's output (d = ``region_dim``); with ``region_input:
embedded``, they are the network's embedding of it (d = its hidden size).

Of a model with label names, they also have ``labels`` int16 (n,) and ``label_probabilities`` float16 (n,): what the
classifier sees most probably in the part of the photo where each region is. No score reads them; :meth:`explain` does.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ldot_milvus.errors import InputError
from ldot_milvus.models.base import Array, KeptImage
from ldot_milvus.models.calibration import Calibration, read_calibration
from ldot_milvus.models.network_reranker import RerankerOfFiles
from ldot_milvus.regions import Regions

if TYPE_CHECKING:
    from ldot_milvus.models.lightningdot.files import LightningDOTRerankerFiles

ARRAYS = ("features", "boxes", "confidence")

SURE = 0.6
"""Least probability of a label that names a region. 39 % of the sample photos' cells have one; 2 of 3 are right."""


class ReadsRegionData(RerankerOfFiles):
    """What re-rankers have in common that score region data."""

    _files: LightningDOTRerankerFiles

    def names(self, kept: KeptImage) -> list[str | None] | None:
        """Return the names of regions by the classifier; None for a region of which it is not sure.

        Region data of models without label names, and of earlier versions, have no names at all.
        """
        labels, probabilities, known = kept.get("labels"), kept.get("label_probabilities"), self._files.labels
        if labels is None or probabilities is None or not known:
            return None
        return [
            known[label] if 0 <= label < len(known) and probability >= SURE else None
            for label, probability in zip(labels.tolist(), probabilities.tolist(), strict=True)
        ]

    @cached_property
    def calibration(self) -> Calibration | None:
        """Probabilities of ``rerank_score``, fitted on data (``calibration.json``).

        None if they were not, or with another first stage, re-ranker or weight of the dot product than here.
        """
        return read_calibration(self._files.name, self._files.folder, lambda: self._files.fitted_for)

    def check(self, kept: KeptImage) -> None:
        """Validate region data that was read from a store.

        Raises:
            InputError: one of the three arrays is missing or has a wrong shape. The message names it.
        """
        regions_of(kept)


def record(features: Array, regions: Regions) -> KeptImage:
    """Return the region data of an image: ``features`` (n, d) in half precision, with the boxes of its regions.

    Raises:
        InputError: a value is not finite or exceeds the range of half precision.
    """
    with np.errstate(over="ignore"):
        halves = np.ascontiguousarray(features, np.float16)
    if not np.isfinite(halves).all():
        raise InputError("the regions' features are not finite, or exceed the range of half precision (65,504)")
    kept: dict[str, NDArray[Any]] = {
        "features": halves,
        "boxes": np.ascontiguousarray(regions.boxes, np.float32),
        "confidence": np.ascontiguousarray(regions.confidence, np.float16),
    }
    if regions.label_probabilities is not None:
        places = regions.label_places
        kept["labels"] = regions.label_probabilities.argmax(1).astype(np.int16)[places]
        kept["label_probabilities"] = regions.label_probabilities.max(1).astype(np.float16)[places]
    return kept


def regions_of(kept: KeptImage) -> Regions:
    """Return region data as regions, in the precision in which they are stored.

    They are converted where they are computed with, once for a search and not once more for each of its 20 photos.

    Raises:
        InputError: one of the three arrays is missing or has a wrong shape. The message names it.
    """
    missing = [name for name in ARRAYS if name not in kept]
    if missing:
        raise InputError(f"the region data lack {', '.join(missing)}; they contain {', '.join(kept) or 'no array'}")
    features, boxes, confidence = (kept[name] for name in ARRAYS)
    return Regions(features, boxes, confidence)
