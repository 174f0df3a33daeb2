"""The program ``ldot``, with one module per command. Commands import the library only when they run."""

from __future__ import annotations

import os

import click

from ldot_milvus.cli.convert import convert
from ldot_milvus.cli.doctor import doctor
from ldot_milvus.cli.duplicates import duplicates
from ldot_milvus.cli.evaluate import evaluate
from ldot_milvus.cli.mcp import mcp
from ldot_milvus.cli.models import models
from ldot_milvus.cli.regions import regions
from ldot_milvus.cli.search import search
from ldot_milvus.cli.serve import serve
from ldot_milvus.cli.stores import migrate, reindex
from ldot_milvus.cli.train import train
from ldot_milvus.variables import ENV_FILE


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ldot-milvus")
@click.option(
    "--env-file",
    metavar="FILE",
    help="Also read settings from the lines LDOT_NAME=VALUE of this file (default: $LDOT_ENV_FILE or none). Variables "
    "of the environment override them.",
)
def main(env_file: str | None) -> None:
    """Search photos by text or by example with LightningDOT.

    Ingest photos first: celery -A workers enqueue PATH...

    Settings are read from environment variables such as LDOT_STORE, LDOT_COLLECTION and LDOT_MODEL. "ldot doctor"
    checks them. A command that cannot do its work prints the reason as one line and exits with status 2.
    """
    if env_file is not None:
        os.environ[ENV_FILE] = os.path.abspath(env_file)


for command in (search, serve, duplicates, evaluate, regions, convert, train, migrate, reindex, models, mcp, doctor):
    main.add_command(command)
