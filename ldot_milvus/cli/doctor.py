"""``ldot doctor``."""

from __future__ import annotations

import sys

import click


@click.command()
def doctor() -> None:
    """Look at everything that the settings name: device, model, store, indexes, region store and broker.

    Each line says ok, or what to do. Exit status: 0 if all is well, else 1. A Milvus server is asked which GPU indexes
    it can build, which takes up to 20 seconds.
    """
    from ldot_milvus.doctor import examine
    from ldot_milvus.settings import Settings

    well = True
    for finding in examine(Settings()):
        well &= finding.ok
        click.echo(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.part:<13} {finding.text}")
    sys.exit(0 if well else 1)
