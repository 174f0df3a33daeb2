"""Pixels to regions."""

from .base import RegionExtractor, Regions

__all__ = ["RegionExtractor", "Regions"]
