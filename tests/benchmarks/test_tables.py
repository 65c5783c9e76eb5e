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
    row = common | {"method": "global-product", "sparsity": "0.01", "certified_global-product": "50", "eliminated": "1"}
    head, line = tables.training([row | {"train_seconds": ""}])
    assert head[-3:] == ["global-product", "eliminated", "s"]
    assert line == ["digits-0.5", "clipped relu", "global-product, sparsity", "3", "90", "80", "50", "1", ""]
    assert tables.markdown([head, line]).count("\n") == 2


def test_norm_speed(tables):
    """A power method that never got there counts with all the time it took."""
    common = {"section": "speed", "network": "4c3f", "weights": "random", "value": "", "setting": "", "note": ""}
    power = common | {"method": "power", "eliminated": "0.5", "seconds": "6.0"}
    last = common | {"method": "lanczos", "eliminated": "0.5", "setting": "power / lanczos, time", "seconds": ""}
    never = last | {"value": "inf", "note": "power inf s, lanczos 0.5 s"}
    there = last | {"eliminated": "inactive", "value": "12.34"}
    assert tables.norm_speed([power, never, there]) == [
        ["network, weights", "50 %", "inactive"],
        ["4c3f, random", "> 12", "12.3"],
    ]


def test_norm_bounds(tables):
    common = {"section": "bounds", "method": "cholesky", "setting": "all layers"}
    rows = [common | {"network": "4c3f", "mean_error": error} for error in ("0.1", "0.02", "nan")]
    rows.append(common | {"network": "6c2f", "mean_error": "0.5", "setting": "dense layers"})
    assert tables.norm_bounds(rows) == [
        ["bound", "4c3f", "6c2f"],
        ["cholesky, all layers", "1.02 to 1.1", "too large to run"],
        ["cholesky, dense layers", "too large to run", "1.5 to 1.5"],
    ]


def test_norm_values(tables):
    common = {"section": "starts", "network": "4c3f", "method": "shared start"}
    rows = [common | {"iterations": str(k), "value": value} for k, value in ((1, "0.9304"), (2, "0.98"))]
    head, line = tables.norm_values(rows, "starts", "iterations")
    assert head == ["network", "method", "iterations 1", "iterations 2"]
    assert line == ["4c3f", "shared start", "0.93", "0.98"]


def test_products_by_method(tables):
    common = {"network": "mixer", "region": "ball", "eps": "0.05", "images": "4", "robust": "3", "certified": "2"}
    rows = [common | {"method": m, "ratio": r} for m, r in (("crown", "1.5"), ("ibp", "9"), ("crown", "1.25"))]
    rows.append(common | {"region": "box", "method": "ibp", "ratio": "2"})
    assert tables.products(rows, classifiers=True) == [
        ["network, ε", "images", "IBP", "CROWN", "certified: CROWN", "local-lip-crown", "PGD"],
        ["mixer, 0.05", "4", "9", "1.25", "2", "", "3"],
    ]
    assert tables.products(rows, classifiers=False) == [["network, ε", "region", "IBP"], ["mixer, 0.05", "box", "2"]]
