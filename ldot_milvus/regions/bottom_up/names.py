"""Names of the detector's classes and attributes in Visual Genome."""

from __future__ import annotations

from functools import cache
from pathlib import Path

VOCABULARIES = Path(__file__).parents[2] / "pretrained" / "vocab"
OBJECTS = VOCABULARIES / "visual-genome-objects.txt"
ATTRIBUTES = VOCABULARIES / "visual-genome-attributes.txt"


@cache
def read_names(path: Path, count: int) -> tuple[str, ...]:
    """Read a list of names.

    Args:
        path: the list, one name a line.
        count: number of the detector's classes or attributes.

    Returns:
        The names by id; "#0" to "#(count - 1)" if the list has another length, because it belongs to other classes.
    """
    names = tuple(line.split(",")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return names if len(names) == count else tuple(f"#{number}" for number in range(count))
