"""Which class turns pixels into regions: what "kind" means in a model's ``region_extractor``.

A new extractor is one module and one line of :data:`EXTRACTORS`, or one call of :func:`register_extractor`:
``docs/extend/extractor.md``.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

EXTRACTORS = {
    "grid": "ldot_milvus.regions.grid:GridExtractor",
    "bottom_up": "ldot_milvus.regions.bottom_up.extractor:BottomUpExtractor",
}
"""The "kind" of an extractor to ``module:class``, a :class:`~ldot_milvus.regions.base.RegionExtractor`."""


def register_extractor(kind: str, extractor: str) -> None:
    """Make an extractor known to this process.

    Args:
        kind: as ``region_extractor`` in a model's ``config.json`` says it.
        extractor: ``module:class``, imported when a photo first needs it. The class has a ``from_pretrained`` that
            takes the place of the weights, the other keys of ``region_extractor``, ``device`` and ``dtype``.
    """
    EXTRACTORS[kind] = extractor


def extractor_class(kind: str) -> Any:
    """The class of an extractor.

    Raises:
        ValueError: no extractor of that kind is known.
    """
    if kind not in EXTRACTORS:
        raise ValueError(f"region extractor {kind!r} is not known; {', '.join(map(repr, sorted(EXTRACTORS)))} are")
    module, _, name = EXTRACTORS[kind].partition(":")
    return getattr(import_module(module), name)
