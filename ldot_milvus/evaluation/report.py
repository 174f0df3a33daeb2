"""Format the figures of an evaluation as a table, together with published ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from ldot_milvus.evaluation.recall import CUTS

PUBLISHED = Path(__file__).with_name("published.json")


def published_figures(data: str, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the published figures of a data set, each with its source.

    Args:
        data: name of the data set (:class:`~ldot_milvus.evaluation.datasets.DataSet`).
        result: see :func:`~ldot_milvus.evaluation.evaluate.evaluate`.

    Returns:
        An empty list if ``result`` was measured with another protocol: other photos, folds or a pool.
    """
    if "folds" in result or "pool" in result:
        return []
    known: list[dict[str, Any]] = json.loads(PUBLISHED.read_text())
    return [row for row in known if row["data"] == data and row["images"] == result["images"]]


def table(result: Mapping[str, Any], published: Sequence[Mapping[str, Any]] = ()) -> str:
    """Format Recall@1/5/10 of both directions, and the mean of these six figures, as a table.

    Args:
        result: see :func:`~ldot_milvus.evaluation.evaluate.evaluate`.
        published: see :func:`published_figures`.
    """
    rows: list[tuple[str, Mapping[str, Any]]] = [("dot product", result)]
    curve = {point["M"]: point for point in result.get("curve", [])}
    if "reranked" in result:
        curve[result["reranked"]["M"]] = result["reranked"]
    rows += [(f"re-ranked, first {number}", curve[number]) for number in sorted(curve) if number]
    published_rows = [(f"  {row['model']}", row) for row in published]
    width = max(len(name) for name, _ in rows + published_rows)
    cuts = _cells([f"R@{cut}" for cut in CUTS])
    lines = [
        f"{'':{width}}  {'text to image':>20}  {'image to text':>20}",
        f"{'':{width}}  {cuts}  {cuts}  {'mean':>6}",
        *(f"{name:{width}}  {_figures(figures)}" for name, figures in rows),
    ]
    for source, group in groupby(published_rows, key=lambda row: row[1]["source"]):
        lines += [f"published, {source}:", *(f"{name:{width}}  {_figures(figures)}" for name, figures in group)]
    return "\n".join(lines)


def headline(result: Mapping[str, Any]) -> str:
    """Format the number of photos and captions, and the duration."""
    text = f"{result['images']:,} photos, {result['captions']:,} captions"
    if "folds" in result:
        text += f", the mean of {result['folds']} folds"
    if "pool" in result:
        text += f", among {result['pool']['images']:,} photos and {result['pool']['captions']:,} captions"
    return f"{text}, {result['seconds']} s"


def _figures(figures: Mapping[str, Any]) -> str:
    ways = [[figures[way].get(f"R@{cut}") for cut in CUTS] for way in ("text_to_image", "image_to_text")]
    values = [value for way in ways for value in way]
    mean = None if None in values else sum(values) / len(values)
    return "  ".join([*(_cells([_number(value) for value in way]) for way in ways), f"{_number(mean):>6}"])


def _cells(values: Sequence[str]) -> str:
    return "".join(f"{value:>7}" for value in values)[1:]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
