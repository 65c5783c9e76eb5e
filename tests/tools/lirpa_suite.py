"""Runs the test suite of an auto_LiRPA checkout with its own class and with ours, and explains every difference.

    make lirpa-tests LIRPA=<checkout>     or     python tests/tools/lirpa_suite.py <checkout> [--budget 280]

Nothing is fetched or installed, and the checkout stays as it is (its tests run in a copy). A test that passes with one
class and not with the other needs a reason in `lirpa_suite_reasons.json`; exit status 1 if one has none.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
REASONS = HERE / "lirpa_suite_reasons.json"
#: Run programs, or need models that have to be downloaded; neither uses the class under test.
LEFT_OUT = ("test_examples.py", "test_examples_ci.py", "test_language_models.py")

Outcomes = dict[str, dict[str, str]]


def run(checkout: Path, which: str, timeout: int, budget: int, select: str) -> Outcomes:
    """Outcome and last line of every test, with ``which`` class."""
    with tempfile.TemporaryDirectory() as folder:
        tests, result = Path(folder) / "tests", Path(folder) / "result.json"
        shutil.copytree(checkout / "tests", tests)
        for entry in checkout.iterdir():  # examples/ and others, which tests import from
            if entry.name != "tests":
                (Path(folder) / entry.name).symlink_to(entry)
        paths = [str(checkout), str(HERE.parents[1]), str(HERE)]
        settings = {
            "LIRPA_SUITE_CLASS": which,
            "LIRPA_SUITE_TIMEOUT": str(timeout),
            "LIRPA_SUITE_BUDGET": str(budget),
            "LIRPA_SUITE_RESULT": str(result),
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, "-m", "pytest", "-q", "-p", "lirpa_suite_plugin", "-p", "no:cacheprovider"]
        command += ["-c", os.devnull, "--rootdir", str(tests), "--continue-on-collection-errors"]
        command += [f"--ignore={name}" for name in LEFT_OUT] + (["-k", select] if select else [])
        finished = False
        while not finished:
            started = time.monotonic()
            done = subprocess.run(command, cwd=tests, env={**os.environ, **settings}, capture_output=True, text=True)
            budget -= int(time.monotonic() - started)
            settings["LIRPA_SUITE_BUDGET"] = str(budget)
            finished = 0 <= done.returncode <= 1 or done.returncode == 5 or budget < 0
            if not result.exists():
                raise SystemExit(f"the tests did not run:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return json.loads(result.read_text(encoding="utf-8"))


def differences(plain: Outcomes, ours: Outcomes) -> list[str]:
    """Names of the tests that ran with both and ended differently."""
    ran = [name for name in plain if name in ours and "skipped" not in (plain[name]["outcome"], ours[name]["outcome"])]
    return [name for name in ran if plain[name]["outcome"] != ours[name]["outcome"]]


def reason_for(name: str, reasons: dict[str, str]) -> str | None:
    """The reason whose key is the longest part of the test's name."""
    known = [key for key in reasons if key in name]
    return reasons[max(known, key=len)] if known else None


def report(plain: Outcomes, ours: Outcomes, reasons: dict[str, str]) -> int:
    """Prints counts and differences; the number of those without a reason."""
    for which, outcomes in (("plain", plain), ("ours", ours)):
        kinds = [entry["outcome"] for entry in outcomes.values()]
        print(f"{which:6}", ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds))))
    unexplained = 0
    for name in differences(plain, ours):
        reason = reason_for(name, reasons)
        unexplained += reason is None
        print(f"\n{name}\n  plain: {plain[name]['outcome']}, ours: {ours[name]['outcome']}")
        print(f"  {(plain[name]['message'] or ours[name]['message'])}")
        print(f"  reason: {reason or 'NONE KNOWN'}")
    skipped = sorted(name for name, entry in {**plain, **ours}.items() if entry["outcome"] == "skipped")
    if skipped:
        print(f"\nnot compared, for lack of time or by their own wish: {', '.join(skipped)}")
    print(f"\n{len(differences(plain, ours))} differences, {unexplained} without a reason")
    return unexplained


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder that holds auto_LiRPA/ and tests/")
    parser.add_argument("--timeout", type=int, default=60, help="seconds for one test")
    parser.add_argument("--budget", type=int, default=280, help="seconds for all tests with one class")
    parser.add_argument("--select", default="", help="tests to run, as pytest's -k")
    options = parser.parse_args()
    if not (options.checkout / "tests" / "testcase.py").exists():
        parser.error(f"{options.checkout} is no checkout of auto_LiRPA: it has no tests/testcase.py")
    checkout = options.checkout.resolve()
    found = [run(checkout, which, options.timeout, options.budget, options.select) for which in ("plain", "ours")]
    return 1 if report(found[0], found[1], json.loads(REASONS.read_text(encoding="utf-8"))) else 0


if __name__ == "__main__":
    raise SystemExit(main())
