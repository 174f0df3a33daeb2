"""Find the class of a region extractor by the "kind" in a model's ``region_extractor``.

A new extractor takes one module and one line in :data:`EXTRACTORS`, or one call of :func:`register_extractor`; see
``docs/extend/extractor.md``.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any

EXTRACTORS = {
    "grid": "ldot_milvus.regions.grid:GridExtractor",
    "bottom_up": "ldot_milvus.regions.bottom_up.extractor:BottomUpExtractor",
}
"""Maps the "kind" of an extractor to ``module:class``, a :class:`~ldot_milvus.regions.base.RegionExtractor`."""


def register_extractor(kind: str, extractor: str) -> None:
    """Register an extractor in this process.

    Args:
        kind: the "kind" of ``region_extractor`` in a model's ``config.json``.
        extractor: ``module:class``, imported for the first photo. The class needs a class method ``from_pretrained``
            with the folder or hub id of the weights as its first argument, and the other keys of
            ``region_extractor``, ``device`` and ``dtype`` as keyword arguments.
    """
    EXTRACTORS[kind] = extractor


def extractor_class(kind: str) -> Any:
    """Import and return the class of an extractor.

    Raises:
        ValueError: no extractor of that kind is registered.
    """
    if kind not in EXTRACTORS:
        raise ValueError(f"unknown region extractor {kind!r}; use one of {', '.join(map(repr, sorted(EXTRACTORS)))}")
    return resolve_name(EXTRACTORS[kind])
