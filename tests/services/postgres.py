"""A PostgreSQL on loopback, for what writes to a database: Debian's package, unpacked.

Promises: a fresh cluster below the directory, one superuser `collector` without a password, ended by its process id.
PostgreSQL refuses to run as root: root runs it in a user namespace in which it is somebody else.
"""

import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from services import fetch
from services.process import ServiceProcess, free_port, listens

USER = "collector"
_NOBODY = "65534"


class Postgres:
    """A context; `url` is for JDBC."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._bin = fetch.ensure(fetch.POSTGRESQL).path(fetch.POSTGRESQL.program).parent
        self._environment = {**fetch.POSTGRESQL.environment(), "LC_ALL": "C", "TZ": "UTC"}
        self._port = free_port()
        self._process: ServiceProcess | None = None
        self.url = f"jdbc:postgresql://127.0.0.1:{self._port}/postgres"

    def __enter__(self) -> Self:
        data = self._directory / "data"
        self._directory.mkdir(parents=True, exist_ok=True)
        how = ["--pgdata", str(data), "--username", USER, "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"]
        self._run([*_not_as_root(), str(self._bin / "initdb"), *how])
        command = [*_not_as_root(), str(self._bin / "postgres"), "-D", str(data), "-p", str(self._port), "-F"]
        command += ["-h", "127.0.0.1", "-c", "unix_socket_directories="]
        process = ServiceProcess("postgres", command, directory=self._directory, environment=self._environment)
        self._process = process.until_ready(listens(self._port), f"listener on {self._port}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.stop()

    def query(self, sql: str) -> list[str]:
        """The rows as psql prints them: columns separated by |."""
        where = ["-h", "127.0.0.1", "-p", str(self._port), "-U", USER, "-d", "postgres"]
        return self._run([str(self._bin / "psql"), *where, "-X", "-A", "-t", "-c", sql]).splitlines()

    def _run(self, command: list[str]) -> str:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, env=self._environment
        )
        if done.returncode:
            raise RuntimeError(f"{Path(command[-1]).name}: {done.stderr or done.stdout}")
        return done.stdout


def _not_as_root() -> list[str]:
    if os.geteuid() != 0:
        return []
    if not shutil.which("unshare"):
        raise fetch.ServiceMissingError("postgresql: root needs util-linux's unshare to run it")
    return ["unshare", "--user", f"--map-user={_NOBODY}", f"--map-group={_NOBODY}"]
