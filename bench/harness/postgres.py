"""A Postgres server of the bench's own: durable, on a real disk, gone afterwards."""

import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

# As an operator would set them for a server on this machine; what decides about durability
# (fsync, synchronous_commit, full_page_writes) is as Postgres has it: on.
SETTINGS = {
    "shared_buffers": "1GB",
    "max_connections": "400",
    # No checkpoint while something is measured: one makes the next minute slower for whoever
    # comes then.
    "max_wal_size": "32GB",
    "checkpoint_timeout": "1h",
    "wal_compression": "off",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    # A full disk of logs is nobody's wish.
    "log_min_messages": "fatal",
}

# First ids of the table; load.lua and the pgbench scripts count from here too.
FIRST_GROUP, FIRST_USER = 1_000_000_000, 2_000_000_000


def programs() -> Path:
    """The folder of the newest server programs."""
    given = os.environ.get("PG_BIN_DIR")
    found = sorted(
        glob.glob("/usr/lib/postgresql/*/bin"),
        key=lambda path: float(path.split("/")[4]),
        reverse=True,
    )
    for path in ([given] if given else []) + found:
        if all((Path(path) / name).exists() for name in ("initdb", "postgres", "psql", "pgbench")):
            return Path(path)
    raise SystemExit("PostgreSQL's server programs are missing: make postgres")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Postgres:
    """Started on entering, ended and deleted on leaving."""

    def __init__(self) -> None:
        self.bin = programs()
        # Postgres refuses to run as root.
        self.user = "postgres" if os.geteuid() == 0 else None
        if self.user:
            try:
                pwd.getpwnam(self.user)
            except KeyError:
                self.user = "nobody"
        # /tmp may be in memory, and what fsync costs is what this is about.
        self.dir = Path(tempfile.mkdtemp(prefix="openim-group-mirror-bench-", dir="/var/tmp"))
        self.port = free_port()
        self.process: subprocess.Popen | None = None

    def url(self, database: str = "bench") -> str:
        return f"postgres://bench@127.0.0.1:{self.port}/{database}"

    def __enter__(self) -> "Postgres":
        try:
            if self.user:
                shutil.chown(self.dir, self.user)
            data = self.dir / "data"
            initdb = ["initdb", "--pgdata", str(data), "--username", "bench", "--auth", "trust"]
            self.run(*initdb, "--encoding", "UTF8", "--locale", "C")
            options = [text for name, value in SETTINGS.items() for text in ("-c", f"{name}={value}")]
            self.process = subprocess.Popen(
                [self.bin / "postgres", "-D", data, "-p", str(self.port), *options],
                user=self.user,
                # That user may not be let into ours.
                cwd=self.dir,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            deadline = time.monotonic() + 30
            while self.query("SELECT 1", database="postgres", check=False) is None:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("the bench's Postgres does not start")
                time.sleep(0.05)
            self.query("CREATE DATABASE bench", database="postgres")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process:
            # At once: the data is thrown away.
            self.process.send_signal(signal.SIGQUIT)
            try:
                self.process.wait(30)
            finally:
                self.process.kill()
                shutil.rmtree(self.dir, ignore_errors=True)
        shutil.rmtree(self.dir, ignore_errors=True)

    def run(self, program: str, *args: str) -> None:
        done = subprocess.run(
            [self.bin / program, *args], user=self.user, cwd=self.dir, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{program} failed:\n{done.stderr}")

    def query(self, sql: str, database: str = "bench", check: bool = True) -> str | None:
        """What psql prints, bare; None where it fails and `check` is off."""
        command = [self.bin / "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql, self.url(database)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            if check:
                raise SystemExit(f"psql failed:\n{done.stderr}")
            return None
        return done.stdout.strip()

    def fill(self, groups: int, members: int) -> None:
        """Empty tables made full: so many groups of so many members."""
        self.query(
            f"""
            TRUNCATE group_members, groups;
            INSERT INTO groups
                (group_id, name, owner_user_id, status, created_at, updated_at)
            SELECT ({FIRST_GROUP} + g)::text, 'Kayaks', ({FIRST_USER} + 1)::text, 0, now(), now()
              FROM generate_series(1, {groups}) AS g;
            INSERT INTO group_members
                (group_id, user_id, nickname, display_nickname, face_url, display_face_url,
                 role_level, ex, created_at, updated_at)
            SELECT ({FIRST_GROUP} + g)::text, ({FIRST_USER} + u)::text,
                   (100000000 + u)::text, (100000000 + u)::text,
                   'https://cdn.example.com/avatars/0123456789abcdef.png',
                   'https://cdn.example.com/avatars/0123456789abcdef.png',
                   CASE WHEN u = 1 THEN 100 ELSE 20 END,
                   '{{"department":"sales","level":3}}', now(), now()
              FROM generate_series(1, {groups}) AS g, generate_series(1, {members}) AS u"""
        )
        self.query("VACUUM (ANALYZE) group_members, groups")
        self.query("CHECKPOINT")

    def filesystem(self) -> str:
        """Of the disk that commits go to."""
        found = subprocess.run(
            ["stat", "-f", "-c", "%T", self.dir], capture_output=True, text=True, check=True
        )
        return found.stdout.strip()

    def processes(self) -> list[int]:
        """The server's, each connection's included."""
        if not self.process:
            return []
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [self.process.pid, *map(int, children.read_text().split())]
