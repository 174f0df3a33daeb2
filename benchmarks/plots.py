"""Draw the pictures of docs/speed.md from benchmarks/results/: python -m benchmarks.plots"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.families import ROOT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS, PICTURES = ROOT / "benchmarks" / "results", ROOT / "docs" / "images"
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "ldot", "font.size": 10, "axes.spines.top": False,
         "axes.spines.right": False, "axes.titlelocation": "left", "axes.titleweight": "bold"}  # fmt: skip
BLUE, ORANGE, GREY, GREEN, PURPLE = "#1f5fa8", "#b3541e", "#8a8f98", "#3b7d4f", "#7a4e9c"


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    for name, (draw, size) in PLOTS.items():
        # An .svg contains text as text, and the same results produce the same file.
        with rc_context(STYLE):
            figure = Figure(figsize=size, layout="constrained")
            draw(figure.add_subplot())
            figure.savefig(PICTURES / f"speed-{name}.svg", metadata={"Date": None})


def results(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def headline(axes: Axes) -> None:
    """How many times faster than cross-attention over all images, by their number."""
    found = results("headline")
    images = found["images"]
    for way, colour, label in (("dot_product", BLUE, "dot product"), ("reranked", ORANGE, "20 re-ranked")):
        for model, style, name in (("base size", "o-", "base size"),
                                   ("ldot-mini, joint cross-attention", "s--", "ldot-mini")):  # fmt: skip
            ratios = [row[f"{way}_ratio"] for row in found[model]]
            axes.loglog(images, ratios, style, color=colour, label=f"{label}, {name}")
        axes.loglog(images, found["published"][label], "x:", color=GREY, label=f"{label}, published")
        ratios = [row[f"{way}_ratio"] for row in found["base size"]]
        axes.annotate(f"{ratios[-1]:,.0f}", (images[-1], ratios[-1]), (6, -3), textcoords="offset points", color=colour)
    axes.set_xticks(images, [f"{number // 1000}K" for number in images])
    axes.minorticks_off()
    axes.set(xlabel="images", ylabel="times faster", title="A query against cross-attention over all images")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=9)


def query(axes: Axes) -> None:
    """The parts of a query."""
    found = results("query")["parts"]
    names = ["encode the text", "score 20 pairs", "read 20 region data", "search the index", "tokenize"]
    left = 0.0
    for name, colour in zip(names, (BLUE, ORANGE, GREEN, PURPLE, GREY), strict=True):
        label = f"{name}, {found[name]:.1f} ms"
        axes.barh("its parts,\ncalled by hand", found[name], left=left, color=colour, label=label)
        left += found[name]
    axes.barh("a search", found["search"], color=GREY)
    axes.text(found["search"], 1, f" {found['search']:.1f} ms", va="center")
    axes.text(left, 0, f" {left:.1f} ms", va="center")
    axes.set(xlabel="milliseconds, one thread", title="A query and the sum of its parts")
    axes.margins(x=0.12)
    axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.3), ncols=3)


def before_and_after(axes: Axes) -> None:
    """What takes which share of the former time."""
    cold, million, encoding = results("cold-start"), results("snapshots"), results("encoding")
    old, new = million["old"], million["new"]
    rows = [
        ("ldot search,\nfrom the shell", cold["search_old"]["seconds"], cold["search_new"]["seconds"], "s"),
        ("first answer of a process,\na million photos", old["first_answer_s"], new["first_answer_s"], "s"),
        ("filtered search,\na million photos", old["filtered_ms"], new["filtered_ms"], "ms"),
        ("a photo's vector", *(1000 / encoding["photos_a_second"][name] for name in ("float32", "chosen")), "ms"),
        ("a text's vector", *(1000 / encoding["texts_a_second"][name] for name in ("torch", "chosen")), "ms"),
    ]  # fmt: skip
    for place, (_, before, after, unit) in enumerate(reversed(rows)):
        axes.barh(place, 1, color="#e4e7ec", height=0.6)
        axes.barh(place, after / before, color=BLUE, height=0.6)
        axes.text(1.02, place, f"{before:,.3g} {unit} → {after:,.3g} {unit}", va="center")
    axes.set_yticks(range(len(rows)), [row[0] for row in reversed(rows)])
    axes.set_xticks([0, 0.2, 0.5, 1], ["0", "1/5", "1/2", "before"])
    axes.set_xlim(0, 1.45)
    axes.set_title("Share of the former time")


def service(axes: Axes) -> None:
    """Queries a second and latency of the service, by clients at once."""
    found = results("serve")
    clients = {1: found["one_client"], 32: found["32_clients"]}
    for place, row in enumerate(clients.values()):
        axes.bar(place, row["per_second"], color=BLUE, width=0.5)
        text = f"{row['per_second']:.0f} a second\np50 {row['p50_ms']:.0f} ms, p99 {row['p99_ms']:.0f} ms"
        axes.text(place, row["per_second"], text, ha="center", va="bottom", fontsize=9)
    axes.set_xticks(range(len(clients)), [str(number) for number in clients])
    axes.margins(y=0.25)
    axes.set(xlabel="clients at once", ylabel="queries a second", title="ldot serve, two cores")


PLOTS: dict[str, tuple[Callable[[Axes], None], tuple[float, float]]] = {
    "headline": (headline, (7.2, 4.2)),
    "query": (query, (7.2, 2.6)),
    "before-and-after": (before_and_after, (7.2, 3.4)),
    "service": (service, (7.2, 3.4)),
}

if __name__ == "__main__":
    main()
