"""Run a command as an ordinary user for whom nothing but one folder can be written, as in a read-only container."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The arguments are the writable folder, the folders to cover, those to keep of them, and the command. The mounts exist
# in a namespace of the command only.
SCRIPT = r"""
data=$1 covered=$2 kept=$3
shift 3
mount --bind "$data" "$data"
# Folders such as /root, which others may not enter, are covered, and what is needed of them is put in their place.
if [ -n "$covered" ]; then
    stage=$data/../stage
    number=0
    for folder in $kept; do
        number=$((number + 1))
        mkdir -p "$stage/$number"
        mount --bind "$folder" "$stage/$number"
    done
    for folder in $covered; do mount -t tmpfs -o mode=755 tmpfs "$folder"; done
    number=0
    for folder in $kept; do
        number=$((number + 1))
        mkdir -p "$folder"
        mount --bind "$stage/$number" "$folder"
        mount -o remount,bind,ro "$folder"
    done
    for folder in $covered; do mount -o remount,ro "$folder"; done
fi
for mounted in $READ_ONLY; do mount -o remount,bind,ro "$mounted"; done
cd "$PWD" # by its name, hence through the mounts
exec setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs "$@"
"""


class ReadOnlyTree:
    """Commands with one writable folder.

    Attributes:
        folder: the folder, which belongs to the user.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        needed = sorted({str(ROOT), sys.prefix, sys.base_prefix})
        closed = {path: top for path in needed if (top := _closed_ancestor(Path(path)))}
        self._arguments = [str(folder), " ".join(sorted(set(closed.values()))), " ".join(closed)]
        self._read_only = " ".join(sorted({_mount_of(Path(path)) for path in [*needed, "/"] if path not in closed}))

    def start(self, command: list[str], log: Path, env: dict[str, str], cwd: Path) -> subprocess.Popen[bytes]:
        """Start a command in a group of its own; signals reach it directly.

        Args:
            command: program and arguments.
            log: file for its output, outside the writable folder or not.
            env: all its environment variables.
            cwd: its working folder.
        """
        arguments = [*self._arguments, *command]
        with log.open("ab") as output:
            return subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "sh", "-ec", SCRIPT, "sh", *arguments],
                env={**env, "READ_ONLY": self._read_only}, cwd=cwd, stdin=subprocess.DEVNULL, stdout=output,
                stderr=output, start_new_session=True,
            )  # fmt: skip

    def run(self, command: list[str], env: dict[str, str], cwd: Path) -> tuple[int, str]:
        """Run a command, and return its exit status and its output."""
        log = self.folder.parent / "output"
        log.write_bytes(b"")
        process = self.start(command, log, env, cwd)
        try:
            return process.wait(120), log.read_text(errors="replace")
        finally:
            process.kill()


@contextmanager
def read_only_tree() -> Iterator[ReadOnlyTree]:
    """Give a read-only tree; skip the test where there are no mount namespaces."""
    with tempfile.TemporaryDirectory(prefix="ldot-tree-") as outer:
        Path(outer).chmod(0o755)
        folder = Path(outer, "writable")
        folder.mkdir()
        os.chmod(folder, 0o777)
        tree = ReadOnlyTree(folder)
        try:
            status, output = tree.run(["true"], dict(os.environ), folder)
        except FileNotFoundError as error:
            pytest.skip(f"a read-only tree cannot be made here: {error}")
        if status:
            pytest.skip(f"a read-only tree cannot be made here: {output.strip()}")
        yield tree


def _closed_ancestor(path: Path) -> str | None:
    """Return the first folder on a path that others may not enter."""
    folders = [*reversed(path.parents), path]
    return next((str(folder) for folder in folders if not folder.stat().st_mode & 0o001), None)


def _mount_of(path: Path) -> str:
    return str(next(folder for folder in [path, *path.parents] if os.path.ismount(folder)))
