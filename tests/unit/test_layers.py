"""Packages import downwards only, in the order that docs/design.md gives."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import ldot_milvus
from tests.conftest import ROOT

PACKAGE = Path(ldot_milvus.__file__).parent


def layers() -> list[list[str]]:
    """The numbered list of docs/design.md, lowest layer first."""
    text = (ROOT / "docs" / "design.md").read_text()
    section = text.partition("## Layers")[2].partition("\n## ")[0]
    lines = re.findall(r"^\d+\. (.*?):", section, re.MULTILINE)
    return [re.findall(r"`([\w.]+)`", line) for line in lines]


def imported(path: Path) -> set[str]:
    """Every module of ours that a module names in an import, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in names if name.startswith("ldot_milvus.")}


def test_imports_go_downwards() -> None:
    order = layers()
    assert len(order) > 5
    level = {name: number for number, layer in enumerate(order) for name in layer}

    def of(module: str) -> int:
        parts = module.removeprefix("ldot_milvus.").split(".")
        found = [".".join(parts[:n]) for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in level]
        assert found, f"{module} is in no layer of docs/design.md"
        return level[found[0]]

    upward = []
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        if module in ("ldot_milvus", "ldot_milvus.__main__"):
            continue  # the public names, and the command: above everything
        upward += [f"{module} -> {name}" for name in imported(path) if of(name) > of(module)]
    assert not upward


def test_nothing_of_ours_imports_the_aliases() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            roots = {name.partition(".")[0] for name in names}
            assert not roots & {"workers", "integrations"}, path
            assert "ldot_milvus.model" not in names, f"{path}: the promised name is for others"
