"""Clients generated from the service's own document (less one field), run against the service.

A client's program gets URL, PASSWORD and TOKEN, and prints a line for each of CHECKS: its name and
"ok", or what it found instead. What is known of a client is a note of its row; anything else is a
fault of the document or of the service, and the part fails.
"""

import json
import pathlib
import shutil
import sys

import places
from places import CACHE, PASSWORD, PROGRAM, TOKEN, WORK, Mirror, Wrong, folder, row, run, say

HERE = pathlib.Path(__file__).resolve().parent.parent / "clients"
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


def missing(*programs):
    """Those that are not installed."""
    return [program for program in programs if shutil.which(program) is None]


def venv(folder, *requirements):
    """Python packages in an environment of their own; the folder of its programs."""
    run(sys.executable, "-m", "venv", folder)
    run(folder / "bin/pip", "install", "--quiet", "--disable-pip-version-check", *requirements)
    return folder / "bin"


class Service(Mirror):
    """The service on a private Postgres, with the members that the clients ask for."""

    def __init__(self):
        super().__init__(DATA_DIR=str(folder("data")), RUST_LOG="error")
        try:
            self.up()
            users = [("x+y", 100), ("50%", 20), ("..", 20), ("gone", 20)]
            first = [{"userID": user, "roleLevel": role} for user, role in users]
            self.callback("callbackAfterCreateGroupCommand", "a/b c", ownerUserID="x+y", initMemberList=first)
            self.callback("callbackAfterKickGroupCommand", "a/b c", kickedUserIDs=["gone"])
        except BaseException:
            self.stop()
            raise
        self.url = f"http://127.0.0.1:{self.port}"

    def __exit__(self, kind, error, trace):
        code = self.stop()
        if kind is None and (code != 0 or self.log()):
            raise Wrong(f"the service ended with {code}:\n{self.log()}")


class Part:
    """A part of the suite: what it is given, and the rows that it adds to the table."""

    def __init__(self):
        self.work = WORK
        self.document = WORK / "openapi.json"
        document = json.loads(run(PROGRAM, "openapi"))
        # A client is older than the service sooner or later: here by a field, which no check asks for.
        member = document["components"]["schemas"]["Member"]
        del member["properties"]["displayName"]
        member["required"].remove("displayName")
        self.document.write_text(json.dumps(document))

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
        row(client, version, "works", "; ".join(notes))

    def openapi_generator(self, generator, folder, *options):
        """A client by openapi-generator, which PyPI has with its Java program."""
        home = CACHE / f"openapi-generator-{OPENAPI_GENERATOR}"
        jar = home / "openapi_generator_cli/openapi-generator.jar"
        if not jar.exists():
            # The package alone: its own start-up code adds nothing.
            run(
                sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                "--no-deps", "--target", home, f"openapi-generator-cli=={OPENAPI_GENERATOR}",
            )  # fmt: skip
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


def main(body):
    """Runs a part with a service."""

    def with_service():
        part = Part()
        with Service() as service:
            body(part, service)

    places.main(with_service)
