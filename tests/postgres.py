"""A real PostgreSQL on loopback, for as long as a test run takes: Debian's, started by us."""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psycopg

PATIENCE_S: Final = 60.0


def find_postgres() -> Path | None:
    """Return the folder of PostgreSQL's programs; Debian keeps them off the path."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/postgres"), key=lambda path: path.split("/")[4])
    there = found[-1] if found else shutil.which("postgres")
    return None if there is None else Path(there).parent


class Postgres:
    """A cluster in a folder of its own, which may be killed and started again. Not safe, but as fast as can be.

    Args:
        programs: See `find_postgres`.
    """

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="headway-postgres-"))
        # It refuses to run as root.
        self._user = "postgres" if os.getuid() == 0 else None
        if self._user is not None:
            owner = pwd.getpwnam(self._user)
            os.chown(self._folder, owner.pw_uid, owner.pw_gid)
        with contextlib.closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None
        self._schemas = 0
        subprocess.run(
            [programs / "initdb", "-D", self._folder / "data", "-A", "trust", "-U", "headway", "--no-sync"],
            check=True,
            capture_output=True,
            cwd="/",
            user=self._user,
        )

    def start(self) -> None:
        """Start it, and return when it answers."""
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self._folder),
            "fsync": "off",
            "max_connections": "50",
            "shared_buffers": "16MB",
        }
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._folder / "data", *words],
                stdout=log,
                stderr=log,
                cwd="/",
                user=self._user,
            )
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                psycopg.connect(self._url("postgres"), connect_timeout=2).close()
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.05)
            else:
                return

    def kill(self) -> None:
        """End it as a power cut would, as far as processes go."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)  # immediate shutdown: its children end too
            self._process.wait(PATIENCE_S)

    def close(self) -> None:
        """End it and delete its folder."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _url(self, database: str, user: str = "headway") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Have one statement executed by who may do everything."""
        with psycopg.connect(self._url(database), autocommit=True) as connection:
            connection.execute(statement.encode())

    def _new_name(self) -> str:
        self._schemas += 1
        return f"fleet{self._schemas}"

    def new_database(self) -> str:
        """Return the address of an empty database: a schema of its own, which is made in no time."""
        name = self._new_name()
        self.execute(f"CREATE SCHEMA {name}")
        return self._url(f"postgres?options=-csearch_path%3D{name}")

    def new_schema(self) -> tuple[str, str]:
        """Return the name of an empty schema that belongs to a user of that name, who may do all in it and
        nothing else, and the address."""
        name = self._new_name()
        self.execute(f"CREATE ROLE {name} LOGIN")
        self.execute(f"CREATE SCHEMA {name} AUTHORIZATION {name}")
        return name, self._url(f"postgres?options=-csearch_path%3D{name}", name)

    def new_latin_database(self) -> str:
        """Return the address of a database of its own, of the encoding that was usual once."""
        name = self._new_name()
        self.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
        return self._url(name)

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """Let it refuse every change for the block, as a standby does."""
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            connection.execute("SELECT pg_reload_conf()")
            try:
                yield
            finally:
                connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
                connection.execute("SELECT pg_reload_conf()")


@contextlib.contextmanager
def running_postgres(programs: Path) -> Iterator[Postgres]:
    """Run one for the block."""
    server = Postgres(programs)
    try:
        server.start()
        yield server
    finally:
        server.close()
