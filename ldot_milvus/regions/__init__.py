"""Pixels to regions, and regions that are there already."""

from .base import RegionExtractor, Regions
from .files import open_regions

__all__ = ["RegionExtractor", "Regions", "open_regions"]
