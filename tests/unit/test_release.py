"""What docs/releasing.md asks of a release: one version, and a section of the changelog about it."""

from __future__ import annotations

import re

import ldot_milvus
from tests.conftest import ROOT


def test_the_version_is_the_same_everywhere() -> None:
    (packaged,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert packaged == ldot_milvus.__version__


def test_the_changelog_has_a_section_for_this_version_or_the_next() -> None:
    sections = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert sections[0] == "Unreleased" or sections[0].startswith(f"{ldot_milvus.__version__} (")
