"""python -m tests.attack [ADDRESS] [--topic T] [--short]: attacks a studio, prints a table.

Without an address it starts one in a folder of its own, and a second one with a share token. A
studio that is named must be on this machine, and its pictures must not matter: an attack that
succeeds deletes some. Exit code 1 where a promise is broken.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from tests.attack import rows
from tests.attack.attack import Target
from tests.attack.started import started

_LOCAL = ("127.0.0.1", "localhost", "::1")


def main(argv: list[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    parser.add_argument("address", nargs="?", help="e.g. http://127.0.0.1:7860")
    parser.add_argument("--topic", default="", help="only the attacks of one topic")
    parser.add_argument("--short", action="store_true", help="few repetitions")
    parser.add_argument("--share-token", default="")
    parser.add_argument("--admin-token", default="")
    given = parser.parse_args(argv)
    print(rows.HEAD)
    if given.address:
        if urlsplit(given.address).hostname not in _LOCAL:
            parser.error("only a studio on this machine is attacked")
        target = Target(
            address=given.address.rstrip("/"),
            short=given.short,
            share_token=given.share_token,
            admin_token=given.admin_token,
        )
        return _attack(target, given.topic)
    code = 0
    for shared in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            with started(Path(folder), short=given.short, shared=shared) as target:
                code = max(code, _attack(target, given.topic))
    return code


def _attack(target: Target, topic: str) -> int:
    code = 0
    for row in rows.tried(target, rows.attacks(topic)):
        print(rows.line(row), flush=True)
        code = max(code, int(row.result == "BROKEN"))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
