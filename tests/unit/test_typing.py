"""A user's program that uses every public name passes mypy strict, with the types that the package itself declares."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ldot_milvus
import ldot_milvus.model
from tests.conftest import ROOT

PROGRAM = ROOT / "tests" / "typed_program" / "user_program.py"


def used_names() -> set[str]:
    """Every name of ours that the program imports and uses, with its module."""
    tree = ast.parse(PROGRAM.read_text())
    imported = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ldot_milvus")
        for alias in node.names
    }
    loaded = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    unused = imported.keys() - loaded
    assert not unused, f"imported and not used: {unused}"
    return {*imported.values(), "ldot_milvus.__version__"}


def public_names() -> set[str]:
    pages = "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    documented = set(re.findall(r"^::: (ldot_milvus\S+)$", pages, re.MULTILINE))
    promised = {f"ldot_milvus.model.{name}" for name in ldot_milvus.model.__all__}
    return documented | promised | {f"ldot_milvus.{name}" for name in ldot_milvus.__all__}


def test_the_program_uses_every_public_name() -> None:
    """A name that is new in ``__all__`` or in docs/reference has to be used in tests/typed_program/user_program.py."""
    used = used_names()
    assert sorted(public_names() - used) == []
    for name in used:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


WITHOUT_TORCH = """\
[mypy]
[mypy-torch.*,transformers.*,sympy.*,safetensors.*]
follow_imports = skip
"""
"""Reading torch takes mypy a minute. Its types are ``Any`` without it; ours are what they are."""


def checked(program: Path, configuration: str) -> tuple[int, str]:
    """Run mypy strict in a folder of its own, without any configuration of this project."""
    folder = program.parent
    (folder / "mypy.ini").write_text(configuration)
    done = subprocess.run(
        [
            sys.executable, "-m", "mypy", "--strict", "--config-file", "mypy.ini", "--warn-unreachable",
            "--no-color-output", "--cache-dir", "cache", program.name,
        ],
        cwd=folder, capture_output=True, text=True, timeout=800, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MYPYPATH": ""},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "configuration", [WITHOUT_TORCH, pytest.param("[mypy]", marks=pytest.mark.slow)], ids=["", "torch"]
)
def test_mypy_strict_accepts_it_and_refuses_wrong_calls(configuration: str, tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is in the extra dev")
    assert (Path(ldot_milvus.__file__).parent / "py.typed").is_file()
    shutil.copy(PROGRAM, tmp_path / "program.py")
    status, output = checked(tmp_path / "program.py", configuration)
    assert status == 0, output

    wrong = """\
from ldot_milvus import LightningDOTEmbedder, Record, Retriever, expand, open_store
retriever = Retriever(LightningDOTEmbedder(), open_store())
retriever.search("a dog", k="3")
retriever.search("a dog", filters={})
retriever.search(5)
retriever.search(image=5)
expand([5])
Record(id="a", width="wide")
reveal_type(retriever.search("a dog")[0].score)
"""
    (tmp_path / "wrong.py").write_text(wrong)
    status, output = checked(tmp_path / "wrong.py", configuration)
    lines = re.findall(r"^wrong\.py:(\d+): error", output, re.MULTILINE)
    assert sorted(set(map(int, lines))) == [3, 4, 5, 6, 7, 8], output
    assert 'Revealed type is "float"' in output.replace("builtins.", "")
