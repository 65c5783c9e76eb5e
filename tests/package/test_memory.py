"""What a process has freed stays its own: large tensors cause no new page faults."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from lirpa_lip.memory import keep_freed_memory

print(keep_freed_memory() if sys.argv[1] == "keep" else None)
for _ in range(2):
    torch.ones(32 << 20)  # 128 MiB, freed at once
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    torch.ones(32 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone has these settings")


def answers(argument, **environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", FAULTS, argument]
    done = subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, check=True)
    said, faults = done.stdout.split()
    return said, int(faults)


@glibc
def test_freed_memory_is_kept():
    assert answers("keep")[0] == "True"
    assert answers("keep")[1] < answers("drop")[1] / 10


@glibc
@pytest.mark.parametrize("name", ["MALLOC_MMAP_MAX_", "GLIBC_TUNABLES"])
def test_a_users_own_settings_stay(name):
    value = {"MALLOC_MMAP_MAX_": "100", "GLIBC_TUNABLES": "glibc.malloc.mmap_max=100"}[name]
    assert answers("keep", **{name: value})[0] == "False"


def test_commands_keep_it(monkeypatch):
    from click.testing import CliRunner

    import lirpa_lip.memory
    from lirpa_lip_cli import main

    called = []
    monkeypatch.setattr(lirpa_lip.memory, "keep_freed_memory", lambda: called.append(True))
    assert CliRunner().invoke(main, ["report", "--help"]).exit_code == 0
    assert called
