"""Find the class of a region extractor by the "kind" in a model's ``region_extractor``.

A new extractor takes one module and one line in :data:`EXTRACTORS`, or one call of :func:`register_extractor`; see
``docs/extend/extractor.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pkgutil import resolve_name
from typing import Any

EXTRACTORS = {
    "grid": "ldot_milvus.regions.grid:GridExtractor",
    "bottom_up": "ldot_milvus.regions.bottom_up.extractor:BottomUpExtractor",
}
"""Maps the "kind" of an extractor to ``module:class``, a :class:`~ldot_milvus.regions.base.RegionExtractor`."""

LeastSide = Callable[[Mapping[str, Any]], int | None]
"""Computes an extractor's ``least_side`` from the options in ``region_extractor``."""

LEAST_SIDES: dict[str, LeastSide] = {"grid": lambda options: 2 * int(options.get("size", 224))}
"""Maps the "kind" of an extractor to its ``least_side``, which is needed before its module, and torch, is imported."""


def register_extractor(kind: str, extractor: str, least_side: LeastSide | None = None) -> None:
    """Register an extractor in this process.

    Args:
        kind: the "kind" of ``region_extractor`` in a model's ``config.json``.
        extractor: ``module:class``, imported for the first photo. The class needs a class method ``from_pretrained``
            with the folder or hub id of the weights as its first argument, and the other keys of
            ``region_extractor``, ``device`` and ``dtype`` as keyword arguments.
        least_side: called with ``region_extractor`` before the module is imported; returns the extractor's
            ``least_side``. Without it, photos are decoded at full size.
    """
    EXTRACTORS[kind] = extractor
    if least_side is None:
        LEAST_SIDES.pop(kind, None)
    else:
        LEAST_SIDES[kind] = least_side


def least_side_of(config: Mapping[str, Any]) -> int | None:
    """Return the ``least_side`` of an extractor without importing its module; None: decode photos at full size.

    Args:
        config: a model's ``region_extractor``. For an option of a wrong type the result is None, since the extractor
            refuses it when it is loaded.
    """
    known = LEAST_SIDES.get(str(config.get("kind")))
    try:
        return None if known is None else known(config)
    except (TypeError, ValueError):
        return None


def classifier_least_side(size: int) -> int:
    """Return the ``least_side`` of a classifier that reads squares of ``size`` pixels, without importing its module."""
    return 3 * size // 2  # leaves the last reduction, which smooths, to the classifier


def both_least_sides(first: int | None, second: int | None) -> int | None:
    """Return the ``least_side`` of photos that two networks read; None: decode at full size, as one of them needs."""
    return None if first is None or second is None else max(first, second)


def extractor_class(kind: str) -> Any:
    """Import and return the class of an extractor.

    Raises:
        ValueError: no extractor of that kind is registered.
    """
    if kind not in EXTRACTORS:
        raise ValueError(f"unknown region extractor {kind!r}; use one of {', '.join(map(repr, sorted(EXTRACTORS)))}")
    return resolve_name(EXTRACTORS[kind])
