"""What several benchmarks share: networks and data, attacks, the table of results, and where it was measured."""

import sys
from pathlib import Path

#: Exact oracles and families of networks have their home among the tests.
TESTS = str(Path(__file__).resolve().parents[2] / "tests")
if TESTS not in sys.path:
    sys.path.append(TESTS)
