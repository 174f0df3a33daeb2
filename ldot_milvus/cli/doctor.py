"""The command ``ldot doctor``."""

from __future__ import annotations

import sys

import click

from ldot_milvus.cli.common import one_line_errors


@click.command()
@one_line_errors
def doctor() -> None:
    """Check the settings: device, model, stores and broker.

    Prints one line for each of device, model, vector store, index types, region store and broker: "ok", or "FAIL" with
    the remedy. Exit status: 0 if every check passes, else 1. On a Milvus server, the check of the GPU indexes takes up
    to 20 seconds.
    """
    from ldot_milvus.doctor import examine
    from ldot_milvus.settings import Settings

    passed = True
    for finding in examine(Settings()):
        passed &= finding.ok
        click.echo(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.part:<13} {finding.text}")
    sys.exit(0 if passed else 1)
