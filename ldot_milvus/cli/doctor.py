"""The command ``ldot doctor``."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from ldot_milvus.cli.common import collection_options, one_line_errors
from ldot_milvus.cli.output import say, say_json


@click.command()
@collection_options
@click.option(
    "--recall", is_flag=True, help="Measure the recall of an approximate index, and keep it in the collection."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@one_line_errors
def doctor(
    collection: str | None, store: str | None, model: str | None, reranker: str | None, recall: bool, as_json: bool
) -> None:
    """Check the settings: device, model, stores, broker and journal.

    Prints every setting with its origin: an option, the environment, a file of variables, or the default. Passwords are
    hidden. Then prints one line for each of settings, device, model, vector store, index types, recall of the
    collection's index, region store, broker and journal: "ok", or "FAIL" with the remedy. Stores, broker and journal
    are also written to, and nothing of that remains. Exit status: 0 if every check passes, else 1. On a Milvus server,
    the check of the GPU indexes takes up to 20 seconds.

    The recall is the one that ldot reindex or --recall measured last. --recall reads up to 200,000 rows with their
    vectors; with a local store it also builds the index, as the first search of each process does.
    """
    from ldot_milvus.doctor import diagnose

    given = {"collection": collection, "store": store, "model": model, "reranker": reranker}
    settings, findings = diagnose({name: value for name, value in given.items() if value is not None}, recall=recall)
    if as_json:
        found = list(findings)
        passed = all(finding.ok for finding in found)
        say_json({"ok": passed, "findings": list(map(asdict, found)), "settings": list(map(asdict, settings))})
        sys.exit(0 if passed else 1)
    width = max((len(setting.value) for setting in settings), default=0)
    for setting in settings:
        say(f"{setting.variable:<23} {setting.value or '-':<{min(width, MAX_VALUE)}}  {setting.origin}")
    if settings:
        say("")
    passed = True
    for finding in findings:
        passed &= finding.ok
        say(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.part:<13} {finding.text}")
    sys.exit(0 if passed else 1)


MAX_VALUE = 50
"""Width of the column of values; longer ones move their origin."""
