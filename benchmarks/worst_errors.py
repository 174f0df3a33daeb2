"""The worst errors on the sample photos: captions whose right photo is far below the first answer, as a picture.

    python -m benchmarks.worst_errors --out benchmarks/results/worst-errors.json --picture errors.jpg

Each of the 255 captions of ``examples/photos`` is searched among the 51 photos, with the first 20 re-ranked. Of the
captions whose first answer is wrong, those are shown whose right photo is furthest behind in score, one for each
right photo. The photos are under CC BY 2.0 and CC BY-SA 2.0; ``examples/photos/photos.jsonl`` has their sources.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report import report
from benchmarks.sample_photos import PHOTOS, sample_photos

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RERANKED = 20
SHOWN = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ldot-mini")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    rows = [json.loads(line) for line in (PHOTOS / "photos.jsonl").read_text(encoding="utf-8").splitlines()]
    errors = found(options.model, rows)
    worst: dict[str, dict[str, Any]] = {}
    for error in sorted(errors, key=lambda error: -error["behind"]):
        worst.setdefault(error["right"], error)
    shown = list(worst.values())[:SHOWN]
    captions = sum(len(row["captions"]) for row in rows)
    report({"captions": captions, "wrong first answers": len(errors), "worst": shown}, options.out)
    if options.picture is not None:
        draw(shown, options.picture)


def found(model: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Search all captions; return those with a wrong first answer, and how far the right photo is behind."""
    errors = []
    with sample_photos(model) as retriever:
        for row in rows:
            for caption in row["captions"]:
                hits = retriever.search(caption, k=RERANKED, rerank=RERANKED)
                scores = {Path(hit.source).name: hit.rerank_score or 0.0 for hit in hits}
                first, right = next(iter(scores)), scores.get(row["file"], min(scores.values()))
                if first != row["file"]:
                    behind = round(scores[first] - right, 2)
                    errors.append({"asked": caption, "came": first, "right": row["file"], "behind": behind})
    return errors


def draw(errors: list[dict[str, Any]], path: Path) -> None:
    """Draw for each error the question, what came, and what was right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 2.6 * len(errors) / 2), layout="constrained")
    rows = figure.subplots(len(errors) // 2, 4)
    for number, error in enumerate(errors):
        came, right = rows[number // 2][2 * (number % 2) :][:2]
        place(came, error["came"], f"“{textwrap.fill(error['asked'], 34)}”\ncame")
        place(right, error["right"], "right")
    figure.savefig(path, dpi=70)


def place(axes: Axes, name: str, title: str) -> None:
    from PIL import Image

    with Image.open(PHOTOS / name) as photo:
        axes.imshow(photo.convert("RGB"))
    axes.set_title(title, fontsize=8, loc="left")
    axes.axis("off")


if __name__ == "__main__":
    main()
