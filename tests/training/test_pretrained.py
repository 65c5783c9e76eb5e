"""The networks we hand on: their files are whole, and their certificates are found again, attacked in vain."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

import lirpa_lip
from lirpa_lip.training.attack import survives_pgd
from lirpa_lip.training.checkpoint import find_checkpoint, load_checkpoint
from lirpa_lip.training.data import load_data
from lirpa_lip.training.epsilon import parse_epsilon, rounded_up
from lirpa_lip.training.run_state import config_of, model_from

ROOT = Path(__file__).resolve().parents[2]
PRETRAINED, MEASURED = ROOT / "examples" / "pretrained", ROOT / "benchmarks" / "results" / "pretrained.csv"
NETWORKS = sorted(p.name for p in PRETRAINED.iterdir() if p.is_dir())
#: Of the first 20 test images: right, and certified by the global bound at the network's radius.
FOUND = {"mnist_4c3f": (20, 12)}


def test_every_network_has_its_figures():
    assert set(NETWORKS) == set(FOUND)


@pytest.mark.parametrize("name", NETWORKS)
def test_whole_small_and_with_a_card(name):
    path = find_checkpoint(PRETRAINED / name)
    loaded = load_checkpoint(path)
    assert (path / "tensors.safetensors").stat().st_size <= 8 << 20
    assert config_of(loaded).data_dir is None
    card = (PRETRAINED / "README.md").read_text(encoding="utf-8").partition(f"## {name}")[2].partition("\n## ")[0]
    with MEASURED.open(newline="", encoding="utf-8") as file:
        row = next(r for r in csv.DictReader(file) if (r["network"], r["bound"]) == (name, "global-product"))
    for figure in ("clean", "certified", "pgd"):
        assert f"{float(row[figure]):.2%}".replace("%", " %") in card


@pytest.mark.parametrize("name", NETWORKS)
def test_twenty_images_are_certified_as_before_and_no_attack_succeeds(name, shared_data):
    loaded = load_checkpoint(find_checkpoint(PRETRAINED / name))
    config, model = config_of(loaded), model_from(loaded)
    x, y = load_data(config.dataset, str(shared_data)).test.batch(torch.arange(20))
    found = lirpa_lip.certify(model, x, y, config.radius, method="global-product", radius_steps=0)
    certified = torch.tensor([f.certified for f in found])
    right = sum(f.prediction == label for f, label in zip(found, y.tolist(), strict=True))
    assert (right, int(certified.sum())) == FOUND[name]
    survived = survives_pgd(model, x, y, rounded_up(parse_epsilon(config.radius)), 100, seed=list(range(20)))
    assert survived[certified].all()
