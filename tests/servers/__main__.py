"""``python -m tests.servers up`` and ``python -m tests.servers down``: what ``make up`` and ``make down`` run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.servers.stack import ROOT, NotStarted, Stack


def main(arguments: list[str] | None = None) -> int:
    """Start or stop the parts of a deployment on this machine.

    Args:
        arguments: those of the command line, by default.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tests.servers", description="Redis, Milvus, a worker, the service."
    )
    parser.add_argument("action", choices=["up", "down"])
    parser.add_argument("--folder", type=Path, default=ROOT / "ldot-data" / "dev", help="for data, logs, process ids")
    options = parser.parse_args(arguments)
    stack = Stack(options.folder)
    if options.action == "down":
        stopped = stack.down()
        print(f"Data and logs are in {stack.folder}.")
        return 0 if stopped else 1
    try:
        stack.up()
    except NotStarted as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Logs are in {stack.folder}. Commands use these servers with")
    print(f"  export LDOT_ENV_FILE={stack.settings_file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
