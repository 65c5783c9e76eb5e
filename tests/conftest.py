"""What all tests share: seeds, device markers, and where the data and networks lie that are not in the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is first imported, which parts of torch do, too

import lirpa_lip  # noqa: F401  (before anything imports auto_LiRPA)

torch.set_num_threads(1)  # the networks are small, and the workers of a parallel run would fight over the cores

SHARED = Path(os.environ.get("LIRPA_LIP_SHARED", Path(__file__).resolve().parents[1].parent / "shared"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _existing(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path} is not there (set LIRPA_LIP_SHARED to the folder that holds data/ and models/)")
    return path


@pytest.fixture
def shared_data() -> Path:
    return _existing(SHARED / "data")


@pytest.fixture
def shared_models() -> Path:
    return _existing(SHARED / "models")
