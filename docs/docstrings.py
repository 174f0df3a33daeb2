"""What mkdocstrings does not read in our docstrings: Sphinx roles, one entry for several arguments, one example."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`(~?)([\w.]+)`")
SHARED = re.compile(r"^( +)(\w+(?:, \w+)+): ")


class Docstrings(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called once an object and its members are loaded."""
        if obj.docstring is not None:
            obj.docstring.value = "\n".join(regular(linked(obj.docstring.value, obj).splitlines()))


def linked(text: str, obj: griffe.Object) -> str:
    """Roles become links; one that leads to nothing in the reference stays plain code."""

    def link(role: re.Match[str]) -> str:
        short, target = role.groups()
        first, dot, rest = target.partition(".")
        try:
            full = obj.resolve(first) + dot + rest
        except griffe.NameResolutionError:
            full = target  # a full path already
        shown = target.rpartition(".")[2] if short else target
        return f'<autoref optional identifier="{full}"><code>{shown}</code></autoref>'

    return ROLE.sub(link, text)


def regular(lines: list[str]) -> list[str]:
    """``a, b: text`` becomes an entry for ``a`` and one for ``b``, each with the whole text; ``Example`` is plural."""
    result: list[str] = []
    section = False
    while lines:
        line, *lines = lines
        line = "Examples:" if line == "Example:" else line  # the singular would be a paragraph, not code
        section = line in ("Args:", "Attributes:") or (section and (not line or line.startswith(" ")))
        shared = SHARED.match(line) if section else None
        if shared is None:
            result.append(line)
            continue
        indent, names = shared.groups()
        more = 0
        while more < len(lines) and lines[more].startswith(indent + " "):
            more += 1
        for name in names.split(", "):
            result += [f"{indent}{name}: {line[shared.end() :]}", *lines[:more]]
        lines = lines[more:]
    return result
