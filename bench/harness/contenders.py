"""Who runs: this service, and what a team would write or use instead."""

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from .postgres import FIRST_GROUP, FIRST_USER, Postgres, free_port

ROOT = Path(__file__).resolve().parent.parent.parent
BENCH = ROOT / "bench"
WORK = ROOT / "target" / "bench"


@cache
def statements() -> dict[str, str]:
    """Statements of the service, so that all contenders run the same ones."""
    command = ["cargo", "bench", "--locked", "--quiet", "--bench", "statements"]
    printed = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    of_service = json.loads(printed.stdout)
    names = {"PATCH": "PATCH_MEMBER", "MEMBER": "MEMBER", "PAGE": "PAGE_OF_GROUP"}
    return {short: of_service[name] for short, name in names.items()}


def run(*command: str | Path, **more: object) -> None:
    done = subprocess.run([str(part) for part in command], **more)
    if done.returncode:
        raise SystemExit(f"failed: {' '.join(str(part) for part in command)}")


@dataclass
class Server:
    """A contender that is a process with a port."""

    name: str
    command: list[str]
    cwd: Path = ROOT
    env: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen | None = None
    url: str = ""
    # Seconds from its start to its first answer.
    start: float = 0.0

    def __enter__(self) -> "Server":
        port = free_port()
        # Settings of whoever runs this are not the contender's.
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        env = {**kept, **self.env, "PORT": str(port), "LISTEN_ADDR": f"127.0.0.1:{port}"}
        self.url = f"http://127.0.0.1:{port}"
        began = time.monotonic()
        WORK.mkdir(parents=True, exist_ok=True)
        self.log = WORK / f"{self.name}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [part.replace("$PORT", str(port)) for part in self.command],
                cwd=self.cwd, env=env, stdout=log, stderr=log,
            )
        path = f"/groups/{FIRST_GROUP + 1}/members/{FIRST_USER + 1}"
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            while True:
                try:
                    direct.open(self.url + path, timeout=5).read()
                    break
                except OSError as error:
                    if self.process.poll() is not None or time.monotonic() > began + 30:
                        raise SystemExit(f"{self.name} does not start ({error}): {self.log}")
                    time.sleep(0.005)
        except BaseException:
            self.__exit__()
            raise
        self.start = time.monotonic() - began
        return self

    def __exit__(self, *_: object) -> None:
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None


def build_service() -> Path:
    run("cargo", "build", "--release", "--locked", "--quiet", cwd=ROOT)
    return target("openim-group-mirror")


def target(name: str) -> Path:
    folder = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return folder / "release" / name


def service(postgres: Postgres) -> Server:
    return of_binary("this service", target("openim-group-mirror"), postgres)


def of_binary(name: str, binary: Path, postgres: Postgres) -> Server:
    """The service, or another build of it."""
    spool = WORK / f"spool of {name}"
    env = {"DATABASE_URL": postgres.url(), "SPOOL_DIR": str(spool), "RUST_LOG": "info"}
    return Server(name, [str(binary)], cwd=WORK, env=env)


def fastify(postgres: Postgres) -> Server:
    folder = WORK / "fastify"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json", "server.js"):
        shutil.copy(BENCH / "peers" / "fastify" / name, folder)
    run("npm", "ci", "--no-audit", "--no-fund", "--loglevel=error", "--silent", cwd=folder)
    env = {"NODE_ENV": "production", **peer_env(postgres)}
    return Server("fastify + pg", ["node", "server.js"], cwd=folder, env=env)


def fastapi(postgres: Postgres) -> Server:
    folder = BENCH / "peers" / "fastapi"
    venv = WORK / "fastapi"
    if not (venv / "bin" / "pip").exists():
        run("python3", "-m", "venv", venv)
    pip = (venv / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "-r", folder / "requirements.txt")
    command = [str(venv / "bin" / "uvicorn"), "server:app", "--host", "127.0.0.1", "--port", "$PORT",
               "--no-access-log", "--log-level", "warning"]
    return Server("FastAPI + asyncpg", command, cwd=folder, env=peer_env(postgres))


def poem_sqlx(postgres: Postgres) -> Server:
    manifest = BENCH / "peers" / "poem-sqlx" / "Cargo.toml"
    folder = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    run("cargo", "build", "--release", "--locked", "--quiet", "--manifest-path", manifest,
        "--target-dir", folder)
    return Server("poem + sqlx", [str(target("bench-poem-sqlx"))], env=peer_env(postgres))


def peer_env(postgres: Postgres) -> dict[str, str]:
    sql = {f"SQL_{name}": text for name, text in statements().items()}
    return {"DATABASE_URL": postgres.url(), **sql}
