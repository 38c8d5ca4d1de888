"""Clients generated from the service's own document (less one field), run against the service.

A client's program gets URL, PASSWORD and TOKEN, and prints a line for each of CHECKS: its name and
"ok", or what it found instead. What is known of a client is a note of its row; anything else is a
fault of the document or of the service, and the part fails.
"""

import base64
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent.parent / "clients"
PASSWORD, TOKEN = "compat-password", "compat-token"
START_SECS = 60
OPENAPI_GENERATOR = "7.26.0"
# Without it some of its clients refuse an answer with a field that is newer than they are.
NEWER = "disallowAdditionalPropertiesIfNotPresent=false"

# What every client does:
CHECKS = [
    "callback",  # sets a member's name: actionCode 0
    "refused",  # the same with a wrong password: errCode 5111
    "ids",  # one member each of ids with `/`, a blank, `+`, `%`
    "unchanged",  # the ETag sent back: 304
    "problem",  # a group that is not there: code group_unknown
    "pages",  # all members, one a page, by the cursor
    "filter",  # two userID, and state=all
    "query",  # members of any id, `..` too, and one who is none
    "groups",  # the groups of a user
    "drift",  # null where an object may be
    "dots",  # the groups of the user `..`
]

# What is found of the last: a client either asks as it should, or the answer shows that it did not.
DOTS = {
    "sent": "",
    "other": "of a user id `..` asks `/groups`; the page has no `userID` then: compare it",
    "empty": "of a user id `..` asks for an empty one: 400",
    "refused": "of a user id `..` asks `/groups`, and refuses the answer, which has no `userID`",
}


class Wrong(Exception):
    """Something of this project is not as it should be."""


def say(text):
    print(text, flush=True)


def run(*command, cwd=None, env=None, secs=900, quiet=True):
    """Runs a program; what it printed is shown where it fails."""
    command = [str(part) for part in command]
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if quiet else None,
        text=True,
        timeout=secs,
    )
    if done.returncode != 0:
        raise Wrong(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-4000:]}")
    return done.stdout


def missing(*programs):
    """Those that are not installed."""
    return [program for program in programs if shutil.which(program) is None]


def venv(folder, *requirements):
    """Python packages in an environment of their own; the folder of its programs."""
    run(sys.executable, "-m", "venv", folder)
    run(folder / "bin/pip", "install", "--quiet", "--disable-pip-version-check", *requirements)
    return folder / "bin"


class Service:
    """The service on a private Postgres, with keys, and with the members that the clients ask for."""

    def __init__(self, program, folder):
        self.program, self.folder = program, folder

    def __enter__(self):
        # The private Postgres runs as another user where this is root.
        self.folder.chmod(0o755)
        env = {key: value for key, value in os.environ.items() if key != "DATABASE_URL"}
        env |= {
            "LISTEN_ADDR": "127.0.0.1:0",
            "DATA_DIR": str(self.folder / "data"),
            "CALLBACK_PASSWORD": PASSWORD,
            "API_TOKEN": TOKEN,
            "RUST_LOG": "error",
        }
        self.out = self.folder / "out"
        with open(self.out, "wb") as out, open(self.folder / "err", "wb") as err:
            self.process = subprocess.Popen(
                [self.program], env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=self.folder
            )
        try:
            self.url = self.listening()
            self.fill()
        except BaseException:
            self.stop()
            raise
        return self

    def listening(self):
        end = time.monotonic() + START_SECS
        while time.monotonic() < end:
            lines = self.out.read_text().splitlines()
            if any(line.startswith("afterSetGroupMemberInfo:") for line in lines):
                return next(line.split()[-1] for line in lines if line.startswith("listening on"))
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise Wrong(f"the service did not start:\n{(self.folder / 'err').read_text()}")

    def callback(self, command, **fields):
        body = json.dumps({"callbackCommand": command, "groupID": "a/b c", **fields})
        key = base64.b64encode(f"openim:{PASSWORD}".encode()).decode()
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {key}"}
        request = urllib.request.Request(f"{self.url}/{command}", body.encode(), headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            reply = json.load(answer)
        if reply["actionCode"] != 0:
            raise Wrong(f"{command}: {reply}")

    def fill(self):
        users = [("x+y", 100), ("50%", 20), ("..", 20), ("gone", 20)]
        first = [{"userID": user, "roleLevel": role} for user, role in users]
        self.callback(
            "callbackAfterCreateGroupCommand", ownerUserID="x+y", initMemberList=first
        )
        self.callback("callbackAfterKickGroupCommand", kickedUserIDs=["gone"])

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def __exit__(self, kind, error, trace):
        code = self.stop()
        errors = (self.folder / "err").read_text()
        if kind is None and (code != 0 or errors):
            raise Wrong(f"the service ended with {code}:\n{errors}")


class Part:
    """A part of the suite: what it is given, and the rows that it adds to the table."""

    def __init__(self):
        self.program = os.path.realpath(os.environ["PROGRAM"])
        self.rows = os.environ.get("ROWS")
        self.kept = os.environ.get("WORK")
        self.work = pathlib.Path(self.kept or tempfile.mkdtemp(prefix="openim-group-mirror-compat-"))
        self.document = self.work / "openapi.json"
        document = json.loads(run(self.program, "openapi"))
        # A client is older than the service sooner or later: here by a field, which no check asks for.
        member = document["components"]["schemas"]["Member"]
        del member["properties"]["displayName"]
        member["required"].remove("displayName")
        self.document.write_text(json.dumps(document))

    def row(self, surroundings, version, result, note=""):
        line = "\t".join([surroundings, version, result, note])
        say(line.replace("\t", " | "))
        if self.rows:
            with open(self.rows, "a") as rows:
                rows.write(line + "\n")

    def judge(self, service, client, version, *command, known=None, note="", **options):
        """Runs a client's program, and holds what it prints against what is right or known."""
        printed = run(*command, service.url, PASSWORD, TOKEN, **options)
        found = dict(line.split(" ", 1) for line in printed.splitlines() if " " in line)
        notes, wrong = [note] if note else [], []
        for check in CHECKS:
            result = found.get(check, "is not there")
            if check == "dots" and result in DOTS:
                notes += [DOTS[result]] if DOTS[result] else []
            elif result != "ok" and check in (known or {}):
                notes.append(known[check])
                say(f"{client}: {check}: {result}")
            elif result != "ok":
                wrong.append(f"{client}: {check}: {result}")
        if wrong:
            raise Wrong("\n".join(wrong))
        self.row(client, version, "works", "; ".join(notes))

    def openapi_generator(self, generator, folder, *options):
        """A client by openapi-generator, which PyPI has with its Java program."""
        jar = self.work / "openapi-generator.jar"
        if not jar.exists():
            home = self.work / "openapi-generator"
            # The package alone: its own start-up code adds nothing.
            run(
                sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                "--no-deps", "--target", home, f"openapi-generator-cli=={OPENAPI_GENERATOR}",
            )  # fmt: skip
            jar.symlink_to(home / "openapi_generator_cli/openapi-generator.jar")
        run(
            "java", "-jar", jar, "generate", "-g", generator, "-i", self.document, "-o", folder,
            "--global-property", "apiTests=false,modelTests=false,apiDocs=false,modelDocs=false", *options,
        )  # fmt: skip

    def without_newer(self, service, command):
        """The note of a client that was generated with NEWER: whether it needs it, by one that was not."""
        printed = run(*command, service.url, PASSWORD, TOKEN)
        if "ids ok" in printed:
            return ""
        return f"refuses an answer with a field newer than the client; generate with `--additional-properties={NEWER}`"

    def close(self):
        if not self.kept:
            shutil.rmtree(self.work, ignore_errors=True)


def main(body):
    """Runs a part with a service; its exit code is 1 where something of this project is wrong."""
    # Whoever ends a part early ends its service, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    part = Part()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="openim-group-mirror-compat-"))
    try:
        with Service(part.program, folder) as service:
            body(part, service)
    except Wrong as wrong:
        say(f"wrong: {wrong}")
        sys.exit(1)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        part.close()
