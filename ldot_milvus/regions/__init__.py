"""Pixels to regions, and regions that are there already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import RegionExtractor, Regions
from .files import open_regions

if TYPE_CHECKING:
    from .bottom_up import BottomUpExtractor

__all__ = ["BottomUpExtractor", "RegionExtractor", "Regions", "open_regions"]


def __getattr__(name: str) -> Any:
    if name != "BottomUpExtractor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .bottom_up import BottomUpExtractor  # loads torch, which a reader of stored regions does not need

    return BottomUpExtractor
