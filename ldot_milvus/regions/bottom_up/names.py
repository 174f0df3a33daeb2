"""What the detector's class and attribute ids are called in Visual Genome."""

from __future__ import annotations

from functools import cache
from pathlib import Path

VOCABULARIES = Path(__file__).parents[2] / "pretrained" / "vocab"
OBJECTS = VOCABULARIES / "visual-genome-objects.txt"
ATTRIBUTES = VOCABULARIES / "visual-genome-attributes.txt"


@cache
def read_names(path: Path, count: int) -> tuple[str, ...]:
    """The names of a list, or the numbers 0 to ``count - 1`` for a detector of other classes than the list's."""
    names = tuple(line.split(",")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return names if len(names) == count else tuple(f"#{number}" for number in range(count))
