"""Time calls, one after the other and in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from statistics import median


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def in_turns(ways: Mapping[str, Callable[[str], object]], rounds: int, texts: Iterable[str]) -> dict[str, float]:
    """Return the median seconds of each way over texts and rounds, after one run of each that does not count."""
    texts = list(texts)
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for text in texts if number else texts[:1]:
            for way, call in ways.items():
                took = seconds(lambda call=call, text=text: call(text))  # type: ignore[misc]
                if number:
                    times[way].append(took)
    return {way: median(values) for way, values in times.items()}
