"""Plot R@1 against M, the number of re-ranked candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldot_milvus.errors import UsageError, reason

NUMBERS = (0, 5, 10, 20, 50, 100)
"""M at the points of the curve."""

WAYS = {"text_to_image": ("text to image", "#1f5fa8"), "image_to_text": ("image to text", "#b3541e")}


def check_picture(path: str | Path) -> Path:
    """Check that :func:`draw` can write ``path``, before an evaluation that may take hours.

    Returns:
        The path.

    Raises:
        UsageError: the suffix is not .png or .svg, the folder does not exist, or matplotlib is not installed.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in (".png", ".svg"):
        raise UsageError(f"{path}: a curve is written as .png or .svg: name such a file")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist: create it first")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError("a curve needs matplotlib: pip install 'ldot-milvus[plot]'") from error
    return path


def draw(points: Sequence[Mapping[str, Any]], path: str | Path, *, title: str) -> None:
    """Write the curve as .png or .svg.

    Args:
        points: ``{"M", "text_to_image", "image_to_text"}`` each, by ascending M.
        path: of the picture.
        title: of the picture.

    Raises:
        UsageError: see :func:`check_picture`, or the file cannot be written.
    """
    path = check_picture(path)
    import numpy as np
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    numbers = [point["M"] for point in points]
    # An .svg contains text as text, and the same figures produce the same file.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "ldot", "font.size": 10}):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.add_subplot()
        values = {way: [point[way]["R@1"] for point in points] for way in WAYS}
        for way, other in zip(WAYS, reversed(WAYS), strict=True):
            label, colour = WAYS[way]
            # The upper curve has its figures above, the lower one below.
            ups = [1 if value >= its else -1 for value, its in zip(values[way], values[other], strict=True)]
            axes.plot(numbers, values[way], "-o", color=colour, markersize=5, linewidth=1.8, zorder=3)
            for number, value, up in zip(numbers, values[way], ups, strict=True):
                axes.annotate(f"{value:.1f}", (number, value), (0, 10 * up), textcoords="offset points",
                              ha="center", va="center", color=colour, fontsize=8.5)  # fmt: skip
            axes.annotate(label, (numbers[-1], values[way][-1]), (22, 6 * ups[-1]), textcoords="offset points",
                          va="center", color=colour, fontweight="bold", annotation_clip=False)  # fmt: skip
        # The axis shows the square root of M, because the curve bends most at small M.
        axes.set_xscale("function", functions=(lambda x: np.sign(x) * np.sqrt(np.abs(x)), lambda x: x * np.abs(x)))
        axes.set_xlim(-numbers[-1] / 400, numbers[-1] * 1.08)
        axes.set_xticks(numbers, [f"{number}" for number in numbers])
        axes.minorticks_off()
        axes.margins(y=0.15)
        axes.set_xlabel("M, the number of candidates that cross-attention re-ranks (0: dot product alone)")
        axes.set_ylabel("R@1, percent")
        axes.set_title(title, loc="left", fontsize=11)
        axes.grid(axis="y", color="#dddddd", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        try:
            figure.savefig(path, dpi=160, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
        except OSError as error:
            raise UsageError(f"{path}: {reason(error)}") from error
