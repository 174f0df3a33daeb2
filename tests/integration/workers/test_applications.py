"""The application and commands of ldot-milvus in the same environment and folder as those of other projects."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from ldot_milvus.settings import Settings
from tests.conftest import Run

COMMANDS = {
    "enqueue": ["photos"],
    "delete": ["--source", "a.jpg"],
    "failures": ["--clear"],
    "metrics": ["--port", "19464"],
    "progress": ["none"],
}

SHOPS = {
    "an application": 'from celery import Celery\napp = Celery("shop", broker="memory://")\n',
    "one named celery": 'from celery import Celery\ncelery = Celery("shop", broker="memory://")\n',
    "one without a name": "from celery import Celery\nanything = Celery()\n",
    "one with our names": (
        'from celery import Celery\napp = Celery("shop", broker="memory://")\n'
        'app.conf.task_default_queue = "ldot"\n\n\n@app.task(name="enqueue", shared=False)\ndef enqueue():\n    pass\n'
    ),
}


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Another project that has its application in a package ``workers``, and other names in common with ldot-milvus."""
    folder = tmp_path / "shop"
    for package in ("workers", "integrations"):
        (folder / package).mkdir(parents=True)
    (folder / "workers" / "__init__.py").write_text(
        'from celery import Celery\napp = Celery("shop", broker="memory://")\napp.conf.task_default_queue = "orders"\n'
    )
    (folder / "integrations" / "__init__.py").write_text('NAME = "the shop\'s"\n')
    for module in ("tasks", "command", "application", "settings"):
        (folder / f"{module}.py").write_text('raise SystemExit("the shop\'s module was imported")\n')
    (folder / "app.py").write_text(
        "import integrations\nimport workers\nfrom ldot_milvus import LightningDOTRetriever\n"
        "from ldot_milvus.workers import app\n"
        "print(workers.app.main, integrations.NAME, LightningDOTRetriever.__module__, app.main)\n"
    )
    return folder


@pytest.fixture
def call(shop: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A program in the shop's folder."""

    def call(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, *arguments[1:]] if arguments[0] == "python" else [
            str(Path(sys.executable).parent / arguments[0]), *arguments[1:]]  # fmt: skip
        return subprocess.run(
            program, cwd=shop, env={**os.environ, **env}, capture_output=True, text=True, timeout=120, check=False
        )

    return call


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    (line,) = done.stderr.strip().splitlines()
    return line


@pytest.mark.parametrize("shop_name", SHOPS)
@pytest.mark.parametrize("command", COMMANDS)
def test_another_application_is_told_whose_command_it_is(
    shop_name: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With valid, invalid and no options: one line, exit status 2, and no effect."""
    from celery.bin.celery import celery as command_line

    name = f"shop_{list(SHOPS).index(shop_name)}"
    (tmp_path / f"{name}.py").write_text(SHOPS[shop_name])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    for arguments in (COMMANDS[command], ["--no-such-option"], []):
        done = CliRunner().invoke(command_line, ["-A", name, command, *arguments])
        assert done.exit_code == 2
        (line,) = done.stderr.strip().splitlines()
        assert f"{command} is a command of ldot-milvus" in line
        assert f"celery -A ldot_milvus.workers {command} ..." in line
        assert done.stdout == ""
    assert {path.name for path in tmp_path.iterdir()} <= {f"{name}.py", "__pycache__"}
    shown = CliRunner().invoke(command_line, ["-A", name, command, "--help"])
    assert shown.exit_code == 0
    assert f"celery {command} [OPTIONS]" in shown.stdout


def test_a_project_with_its_own_workers_and_integrations(call: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    report = call("celery", "-A", "workers", "report")
    assert "task_default_queue: 'orders'" in report.stdout
    assert "ldot" not in report.stdout
    refused = call("celery", "-A", "workers", "enqueue", "photos")
    assert refused.returncode == 2
    assert "celery -A ldot_milvus.workers enqueue ..." in one_line(refused)
    printed = call("python", "app.py")
    expected = "shop the shop's ldot_milvus.integrations.langchain.retriever ldot_milvus\n"
    assert printed.stdout == expected, printed.stderr
    ours = call("celery", "-A", "ldot_milvus.workers", "progress")
    assert (ours.returncode, "No runs" in ours.stdout) == (0, True), ours.stderr


@pytest.mark.parametrize(
    ("arguments", "env"),
    [
        (["python", "-m", "celery", "-A", "ldot_milvus.workers"], {}),
        (["celery"], {}),
        (["celery"], {"CELERY_APP": "ldot_milvus.workers"}),
        (["celery", "-A", "ldot_milvus.workers:app"], {}),
    ],
    ids=["python -m", "no -A", "CELERY_APP", "app by name"],
)  # fmt: skip
def test_ways_to_our_application_from_that_folder(
    call: Callable[..., subprocess.CompletedProcess[str]], arguments: list[str], env: dict[str, str]
) -> None:
    done = call(*arguments, "progress", **env)
    assert (done.returncode, "No runs" in done.stdout) == (0, True), done.stderr


def test_the_environment_of_another_project(call: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """Variables of another project that name missing modules are ignored."""
    env = {"CELERY_LOADER": "shop.loader:Loader", "CELERY_CONFIG_MODULE": "shop.celeryconfig"}
    env |= {"DJANGO_SETTINGS_MODULE": "shop.settings", "CELERY_BROKER_URL": "redis://shop/0"}
    done = call("celery", "-A", "ldot_milvus.workers", "report", LDOT_BROKER="memory://ours", **env)
    assert done.returncode == 0, done.stderr
    assert "task_default_queue: 'ldot'" in done.stdout
    assert "shop" not in done.stdout + done.stderr


def test_the_variable_of_another_application_counts_as_well(
    call: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    refused = call("celery", "progress", CELERY_APP="workers")
    assert refused.returncode == 2
    assert "ldot-milvus" in one_line(refused)


def test_without_an_application_it_ingests_with_ours(
    run: Run, photo_folder: Callable[[int], Path], tiny_model: str
) -> None:
    photo_folder(1)
    env = {"LDOT_MODEL": tiny_model}
    done = run("celery", "enqueue", "photos", env=env)
    assert done.returncode == 0, done.stderr
    assert "1 added" in done.stdout
    assert "1 added" in run("celery", "-A", "workers", "progress", env=env).stdout


def test_folders_of_that_name_which_are_no_packages(run: Run, tmp_path: Path) -> None:
    for name in ("workers", "integrations"):
        (tmp_path / name).mkdir()
    done = run("celery", "-A", "workers", "progress")
    assert (done.returncode, "No runs" in done.stdout) == (0, True), done.stderr


def test_a_wrong_setting_of_ours_harms_no_other_project(
    call: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    for arguments in (["-A", "workers", "report"], ["--help"]):
        right, wrong = call("celery", *arguments), call("celery", *arguments, LDOT_VISIBILITY_TIMEOUT="soon")
        assert (wrong.returncode, wrong.stdout) == (right.returncode, right.stdout)
        assert right.returncode == 0
    refused = call("celery", "-A", "workers", "progress", LDOT_VISIBILITY_TIMEOUT="soon")
    assert "celery -A ldot_milvus.workers progress ..." in one_line(refused)


def test_another_package_that_has_a_command_of_our_name(
    call: Callable[..., subprocess.CompletedProcess[str]], shop: Path
) -> None:
    """The command that is listed last gets the name; that of ldot-milvus delegates the other project's calls."""
    (shop / "shop_commands.py").write_text(
        "import click\n\n\n@click.command()\n@click.option('--order')\ndef enqueue(order):\n"
        "    print('the shop enqueues', order)\n"
    )
    metadata = shop / "shop-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: shop\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[celery.commands]\nenqueue = shop_commands:enqueue\n")
    theirs = call("celery", "-A", "workers", "enqueue", "--order", "7", PYTHONPATH=str(shop))
    assert theirs.stdout == "the shop enqueues 7\n", theirs.stderr
    assert "--order" in call("celery", "-A", "workers", "enqueue", "--help", PYTHONPATH=str(shop)).stdout
    ours = call("celery", "-A", "ldot_milvus.workers", "enqueue", "no-such-folder", PYTHONPATH=str(shop))
    assert "no-such-folder: no such file or folder" in ours.stderr


def test_celerys_own_commands_are_as_they_were() -> None:
    """Compared with a ``celery`` that finds no commands of other packages."""
    probe = (
        "import json, sys, importlib.metadata\n"
        "every = importlib.metadata.entry_points\n"
        "own = sys.argv[1] == 'beside'\n"  # Flower has commands too
        "importlib.metadata.entry_points = lambda **group: [\n"
        "    one for one in every(**group) if own and one.dist.name == 'ldot-milvus']\n"
        "from celery.bin.celery import celery\n"
        "print(json.dumps({name: [command.help, command.callback.__module__, [str(p.opts) for p in command.params]]\n"
        "                  for name, command in celery.commands.items() if command.callback is not None}))\n"
    )
    alone, beside = (
        json.loads(subprocess.run([sys.executable, "-c", probe, how], capture_output=True, check=True).stdout)
        for how in ("alone", "beside")
    )
    assert {"status", "worker", "events"} <= alone.keys()
    assert beside.keys() - alone.keys() == COMMANDS.keys()
    assert {name: beside[name] for name in alone} == alone


def test_commands_that_are_only_listed_cost_nothing() -> None:
    """Every ``celery`` of the environment imports our commands: no application, no settings, nothing heavy."""
    probe = "import sys, celery.bin.celery; print([name for name in sys.modules if name.startswith('ldot_milvus')])"
    loaded = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout
    assert "'ldot_milvus.workers.enqueue'" in loaded
    for module in ("workers.application", "settings", "stores", "sources"):
        assert f"'ldot_milvus.{module}'" not in loaded


def test_help_takes_no_longer_than_celerys_own(run: Run) -> None:
    """In processor time, so that other load does not matter, and as a ratio, so that a slow processor does not.

    Celery's own takes 1.2 s on a throttled machine, and an import of torch would add 3.7 s.
    """

    def spent(*arguments: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert "worker" in run("celery", *arguments).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert "enqueue" in run("celery", "-A", "workers", "--help").stdout
    ours, own = (min(spent(*arguments) for _ in range(2)) for arguments in (["-A", "workers", "--help"], ["--help"]))
    assert ours < 1.25 * own


def test_our_application_is_not_made_everybodys(monkeypatch: pytest.MonkeyPatch) -> None:
    import celery

    from ldot_milvus.workers.application import make_app

    for name in ("CELERY_BROKER_URL", "CELERY_LOADER", "DJANGO_SETTINGS_MODULE"):
        monkeypatch.setenv(name, "redis://shop/0" if "URL" in name else "shop.none")
    before = celery.current_app.main
    app = make_app(Settings(broker="redis://ours/0"))
    assert celery.current_app.main == before
    assert [app.connection_for_write().hostname, app.connection_for_read().hostname] == ["ours", "ours"]
    assert {"ldot.ingest_chunk", "ldot.change_rows"} <= app.tasks.keys()
    other = celery.Celery("shop", set_as_current=False, loader="app", fixups=[])
    assert not [name for name in other.tasks if name.startswith("ldot")]
