"""Tables of results: methods are compared on the images that all of them saw."""

from __future__ import annotations

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import tables

    return tables


def row(method: str, verdicts: str, pgd: str, network: str = "net") -> dict[str, str]:
    common = {"network": network, "eps": "0.3", "cpu_seconds_per_image": "0.0123"}
    return common | {"method": method, "verdicts": verdicts, "images": str(len(verdicts)), "pgd": pgd}


def test_shared_images(tables):
    rows = [row("crown", "1011", "0.7500"), row("local-lip", "11", "1.0000"), row("crown", "1", "1.0", "other")]
    head, line = tables.verification(rows, ["crown", "local-lip"], ["crown"])
    assert head == ["network, ε", "images", "crown", "local-lip", "PGD", "time: crown"]
    assert line == ["net, 0.3", "2", "50", "100", "100", "0.012"]


def test_training_rows(tables):
    common = {"setting": "digits-0.5", "activation": "clipped_relu", "epochs": "3", "clean": "90", "pgd": "80"}
    row = common | {"method": "global", "sparsity": "0.01", "certified_global": "50", "eliminated": "1"}
    head, line = tables.training([row | {"train_seconds": ""}])
    assert head[-3:] == ["global", "eliminated", "s"]
    assert line == ["digits-0.5", "clipped relu", "global, sparsity", "3", "90", "80", "50", "1", ""]
    assert tables.markdown([head, line]).count("\n") == 2
