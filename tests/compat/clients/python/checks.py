"""What the clients in Python share: one line for each check, "ok" or what was found instead."""

import sys

URL, PASSWORD, TOKEN = sys.argv[1:]
GROUP = "a/b c"


def equal(found, expected):
    if found != expected:
        raise AssertionError(f"expected {expected!r}, found {found!r}")


def check(name):
    """Runs the function that it stands before."""

    def now(body):
        try:
            body()
            print(name, "ok")
        except Exception as error:
            print(name, " ".join(f"{type(error).__name__}: {error}".split()))

    return now


def pages(page):
    """The users of all pages, by the cursor."""
    users, cursor = [], None
    while True:
        found = page(cursor)
        equal(found.group_id, GROUP)
        users += [member.user_id for member in found.members]
        cursor = found.next_cursor
        if cursor is None:
            return users
