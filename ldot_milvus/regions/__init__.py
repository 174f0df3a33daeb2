"""Extract regions from photos, and read precomputed region features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ldot_milvus.regions.base import RegionExtractor, Regions
from ldot_milvus.regions.files import open_regions

if TYPE_CHECKING:
    from ldot_milvus.regions.bottom_up import BottomUpExtractor

__all__ = ["BottomUpExtractor", "RegionExtractor", "Regions", "open_regions"]


def __getattr__(name: str) -> Any:
    if name != "BottomUpExtractor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ldot_milvus.regions.bottom_up import BottomUpExtractor  # imports torch, which stored regions do not need

    return BottomUpExtractor
