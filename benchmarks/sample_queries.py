"""Thirty questions to the sample photos, and ten that no photo answers; written down before any answer was seen.

    python -m benchmarks.sample_queries --out benchmarks/results/sample-queries.json

Each question names the photos that answer it. Counted are right first answers, answers among the first five, and right
first answers with a probability above 0.5; of the questions without an answer, those whose first answer has a
probability of at most 0.5. Searches re-rank 20 photos.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.report import report
from benchmarks.sample_photos import sample_photos

SURE = 0.5
ANSWERED: dict[str, tuple[int, ...]] = {
    "a pitcher on the mound throwing a baseball": (433998,),
    "wild horses resting on a mountain meadow": (78499,),
    "riding horseback along the seashore": (214753,),
    "an articulated city bus in green and white": (252639,),
    "a jet parked at the gate of an airport": (125870,),
    "a seaplane on a mountain lake": (205401,),
    "a kitty looking at itself in the bathroom mirror": (358083,),
    "a pet bird eating next to a cat": (196393,),
    "a puppy on a leash beside a fire hydrant": (377575,),
    "guys with a dog and frisbees among the trees": (442450,),
    "a black bear and some vultures": (229997,),
    "a person posing with an elephant": (519208,),
    "a seagull above the dunes": (126107,),
    "someone doing tricks on a skateboard": (129648, 349860, 434204),
    "a motorcyclist in foggy weather": (165518,),
    "a tennis serve": (174375,),
    "a bicycle leaning against a signpost": (107438,),
    "a stop sign behind flowers": (525891,),
    "pedestrians waiting for the light to turn green": (183709,),
    "suitcases waiting at the airport": (475678,),
    "an old clock on a wall outside": (551780,),
    "birthday party with a cake": (790,),
    "a cook preparing pizza dough": (397133,),
    "pizza with a glass of wine": (121647,),
    "broccoli on a dinner plate": (62554, 99053),
    "noodle soup with vegetables": (99053,),
    "a red notebook computer with earphones": (553664,),
    "a workplace with two computer screens": (255165,),
    "a bedside lamp": (403353,),
    "a stove in a kitchen with wooden cupboards": (177977, 408805),
}
UNANSWERED = (
    "a snowboarder jumping in the snow", "two children playing football", "a giraffe eating leaves",
    "a train at a station", "a sailing boat on the sea", "a bride and a groom", "a girl blowing soap bubbles",
    "zebras at a water hole", "a surfer riding a wave", "people around a camp fire at night",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows, nothing = [], []
    with sample_photos("ldot-mini") as retriever:
        for query, photos in ANSWERED.items():
            hits = retriever.search(query, k=5, rerank=20)
            places = [place for place, hit in enumerate(hits, start=1) if int(Path(hit.source).stem) in photos]
            rows.append((query, places[0] if places else None, round(hits[0].probability or 0, 2)))
        for query in UNANSWERED:
            (hit,) = retriever.search(query, k=1, rerank=20)
            nothing.append((query, Path(hit.source).name, round(hit.probability or 0, 2)))
    result = {
        "questions": len(rows),
        "right first": sum(place == 1 for _, place, _ in rows),
        "right among the first five": sum(place is not None for _, place, _ in rows),
        "right first, and probable": sum(place == 1 and probability > SURE for _, place, probability in rows),
        "wrong first, and probable": sum(place != 1 and probability > SURE for _, place, probability in rows),
        "without an answer": len(nothing),
        "without an answer, and said so": sum(probability <= SURE for _, _, probability in nothing),
        "places": {query: {"place": place, "probability of the first": p} for query, place, p in rows},
        "found without an answer": {query: {"first": photo, "probability": p} for query, photo, p in nothing},
    }
    report(result, options.out)


if __name__ == "__main__":
    main()
