"""docs/faults.md: each fault has a test, and each test is there."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT

SECTIONS = re.split(r"^## ", (ROOT / "docs" / "faults.md").read_text(), flags=re.MULTILINE)[1:]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.partition("\n")[0])
def test_every_fault_has_a_test_that_exists(section: str) -> None:
    rows = [line for line in section.splitlines() if line.startswith("| ") and not line.startswith("| fault |")]
    assert rows
    for row in rows:
        fault, happens, tests = (cell.strip() for cell in row.strip("|").split(" | "))
        assert fault
        assert happens
        named = re.findall(r"`([^`]+)`", tests)
        assert named, f"{fault}: no test"
        for name in named:
            file, _, rest = name.partition("::")
            test, _, case = rest.removesuffix("]").partition("[")
            text = (ROOT / "tests" / file).read_text()
            assert re.search(rf"^(async )?def {re.escape(test)}\(", text, re.MULTILINE), f"{name} is not there"
            assert case in text, f"{name}: no such case"
