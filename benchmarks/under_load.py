"""The tests of fault rows hold on a machine that is busy: round after round beside two busy loops.

Claims: of each row F31 to F58 every test passed in five rounds at least, of each row F01 to F30 in two.

A round runs all tests with a row's number in their names, fast and slow, two at a time. Rounds add to the record until it has as
many as are claimed, or the time is over: call it again for more. Rounds count for the code they ran: once package or tests
change, the count starts anew.

    python benchmarks/under_load.py later|earlier [--minutes 40] [--quick]
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import record
from hardware import environment

ROOT = record.HERE.parent
ROWS = {"later": range(31, 59), "earlier": range(1, 31)}
WANTED = {"later": 5, "earlier": 2}
LOOP = (sys.executable, "-c", "while True: pass")


@contextmanager
def busy(count: int = 2) -> Iterator[None]:
    """Other programs that want the cores."""
    loops = [subprocess.Popen(LOOP) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def one_round(rows: range, report: Path) -> dict[str, Any]:
    """Run the tests of these rows: how many passed, which did not, and how many tests each row has."""
    names = " or ".join(f"f{row:02}" for row in rows)
    command = [sys.executable, "-m", "pytest", "-q", "-m", "slow or not slow", "-k", names, "-n", "2", "--dist", "loadfile"]
    command.append(f"--junitxml={report}")
    started = time.monotonic()
    with busy():
        subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=sys.stderr, check=False)
    tests = {"passed": 0, "skipped": 0}
    failed, counted = list[str](), dict.fromkeys((f"F{row:02}" for row in rows), 0)
    for case in ElementTree.parse(report).iter("testcase"):
        outcome = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
        if outcome in tests:
            tests[outcome] += 1
        else:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        for row in rows:
            counted[f"F{row:02}"] += f"f{row:02}" in str(case.get("name")) and outcome == "passed"
    return {**tests, "failed": failed, "tests_of_rows": counted, "seconds": round(time.monotonic() - started)}


def state() -> str:
    """The commit, and of what is not committed a mark: whether two rounds ran the same code."""
    told = [("git", "rev-parse", "HEAD:lit_guide", "HEAD:tests"), ("git", "status", "--porcelain", "lit_guide", "tests")]
    head, changed = (subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split() for words in told)
    return " ".join(tree[:12] for tree in head) + (" and more" if changed else "")


def main() -> int:
    """Run rounds, add them to the record, and say what holds so far."""
    parser = record.arguments(__doc__)
    parser.add_argument("rows", choices=sorted(ROWS), help="later: F31 to F58; earlier: F01 to F30")
    parser.add_argument("--minutes", type=float, default=40.0, help="no round is begun that would end later")
    options = parser.parse_args()
    rows, path = ROWS[options.rows], record.RECORDS / "under_load.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"repetitions": []}
    here, end = state(), time.monotonic() + 60 * options.minutes
    rounds: list[dict[str, Any]] = content["repetitions"]
    wanted, last = 1 if options.quick else WANTED[options.rows], 0.0
    while time.monotonic() + last < end:
        if sum(item["rows"] == options.rows and item["state"] == here for item in rounds) >= wanted and not options.quick:
            break
        with tempfile.TemporaryDirectory() as folder:
            found = one_round(rows, Path(folder, "report.xml"))
        last = found["seconds"]
        rounds.append({"rows": options.rows, "state": here, "date": datetime.now(UTC).date().isoformat(), **found})
        print({key: value for key, value in rounds[-1].items() if key != "tests_of_rows"}, file=sys.stderr, flush=True)
        if options.quick:
            break
        content |= {"script": "benchmarks/under_load.py", "environment": environment(), "claims": claims(rounds, here)}
        record.write("under_load", content)
    for item in claims(rounds, here):
        print(f"{item['text']}: {item['figure']:g} (claim {item['limit']}): {'held' if item['held'] else 'not yet'}")
    return 0


def claims(rounds: list[dict[str, Any]], here: str) -> list[dict[str, Any]]:
    """How many rounds of this code every test of the rows passed, while none failed."""
    found = []
    for rows, span in (("later", "F31 to F58"), ("earlier", "F01 to F30")):
        mine = [item for item in rounds if item["rows"] == rows and item["state"] == here]
        good = sum(not item["failed"] for item in mine)
        text = f"rounds of the tests of {span} beside two busy loops in which every test passed"
        found.append(record.claim(text, good, WANTED[rows], len(mine), at_most=False))
    return found


if __name__ == "__main__":
    sys.exit(main())
