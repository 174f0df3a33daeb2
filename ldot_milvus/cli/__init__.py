"""``ldot``: one module a command. Commands import what they need when they run."""

from __future__ import annotations

import click

from ldot_milvus.cli.convert import convert
from ldot_milvus.cli.doctor import doctor
from ldot_milvus.cli.evaluate import evaluate
from ldot_milvus.cli.regions import regions
from ldot_milvus.cli.search import search
from ldot_milvus.cli.stores import migrate, reindex
from ldot_milvus.cli.train import train


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ldot-milvus")
def main() -> None:
    """Image-text retrieval with LightningDOT.

    Photos are ingested with "celery -A workers enqueue PATH...". Settings come from the environment (LDOT_STORE,
    LDOT_COLLECTION, LDOT_MODEL, ...).
    """


for command in (search, evaluate, regions, convert, train, migrate, reindex, doctor):
    main.add_command(command)
