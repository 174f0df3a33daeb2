"""Print the result of a benchmark, and keep it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def report(result: Any, out: Path | None) -> None:
    """Print a result as JSON, and write it to ``out`` unless that is None."""
    text = json.dumps(result, indent=1)
    print(text)
    if out is not None:
        out.write_text(text + "\n")
