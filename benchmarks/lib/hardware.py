"""What every benchmark row says of where it was measured."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

COLUMNS = ("hardware", "versions", "date")


def hardware() -> str:
    """Processor, threads in use, cores, and the GPU where there is one."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        fields = (line.partition(":") for line in info.read_text().splitlines())
        model = next((value.strip() for key, _, value in fields if key.strip() == "model name"), model)
    text = f"{model}, {torch.get_num_threads()} of {os.cpu_count()} cores"
    return f"{text}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else text


def versions() -> str:
    """Of python, torch, auto_LiRPA and this package (its commit, where it is a checkout)."""
    found = [f"python {platform.python_version()}", f"torch {torch.__version__}"]
    for package in ("auto_LiRPA", "lirpa_lip"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            pass
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True)
    commit_text = os.environ.get("LIRPA_LIP_COMMIT") or commit.stdout.strip()
    return ", ".join([*found, f"commit {commit_text}"] if commit_text else found)


def stamp() -> dict[str, str]:
    """The columns ``COLUMNS``."""
    return {"hardware": hardware(), "versions": versions(), "date": datetime.date.today().isoformat()}
