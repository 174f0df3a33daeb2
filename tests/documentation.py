"""The blocks of README, CONTRIBUTING and the pages of ``docs/``, and a folder in which they can run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT, make_photo
from tests.service_process import Service

SERVICE = re.compile(r"(http://)?(localhost|127\.0\.0\.1):8080")
"""The address of the service on the pages."""

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").rglob("*.md"))),
]
PHOTOS = ("a.jpg", "b.jpg", "beach.jpg", "dog.jpg", "photo.jpg", "photos/0.jpg", "photos/1.jpg", "Pictures/2.jpg")


def blocks(page: str, language: str) -> list[str]:
    """Return the blocks of a language, in the order of the page."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A command of a console block.

    Attributes:
        variables: those that it sets for itself.
        words: program and arguments.
    """

    variables: dict[str, str]
    words: list[str]

    @property
    def text(self) -> str:
        return shlex.join(self.words)


def commands(page: str) -> list[Command]:
    """Return the commands of a page, one for each part of ``a && b``, without the comments after them."""
    found = []
    for block in blocks(page, "console"):
        for line in _lines(block.replace("\\\n", " ")):
            for part in line.split(" && "):
                words = shlex.split(re.sub(r"\$\(.*?\)", "x", part))
                variables = {}
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0], re.DOTALL):
                    name, _, value = words.pop(0).partition("=")
                    variables[name] = value
                found.append(Command(variables, words))
    return found


def _lines(block: str) -> list[str]:
    """Return what follows the prompts, with the next line where a quotation goes on in it."""
    found: list[str] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append(re.sub(r"\s+# .*$", "", line[2:]))
        elif found and found[-1].count("'") % 2:
            found[-1] += " " + line
    return found


def write_photos(folder: Path) -> None:
    """Write the photos that the pages name."""
    for seed, name in enumerate(PHOTOS):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(make_photo(seed, (800, 600)))


@contextmanager
def served(folder: Path, model: str) -> Iterator[str]:
    """Serve the collection of a folder, and give the address.

    Args:
        folder: with ``ldot-data`` in it.
        model: the model that has filled the collection.
    """
    env = {"LDOT_STORE": f"faiss:{folder / 'ldot-data'}", "LDOT_MODEL": model, "LDOT_DEVICE": "cpu"}
    with Service(folder, ["ldot", "serve", "--port", "{port}"], env) as service:
        service.wait_for("searches are answered")
        yield service.url("")
