"""Certificates of a data set: exact radii, ties, resuming, and nothing that a network's own Jacobian contradicts."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import nn

from lirpa_lip.errors import CertificateError, CheckpointError, ConfigError, UnknownMethodError
from lirpa_lip.norms.draw import seeds_of
from lirpa_lip.plots.certified_accuracy import certified_curve, draw_certified_accuracy, known_curve, unknown_share
from lirpa_lip.training.attack import survives_pgd
from lirpa_lip.training.certification import (
    CertifySettings,
    Row,
    certify_shard,
    identity_of,
    read_rows,
    summarise,
    write_merged,
)
from lirpa_lip.training.certifiers import CERTIFIERS, make_certifier
from lirpa_lip.training.models import build_model
from lirpa_lip.training.sources import Subset, TensorSource

SETTINGS = CertifySettings("0.05,36/255", bound="global-product", pgd_steps=0)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return build_model("cnn-tiny", (1, 8, 8), 4, "clipped_relu").eval()


@pytest.fixture
def data() -> TensorSource:
    g = torch.Generator().manual_seed(0)
    return TensorSource(torch.rand(23, 1, 8, 8, generator=g), torch.randint(0, 4, (23,), generator=g))


def row(**changes) -> Row:
    return replace(Row(0, 1, 1, 0.5, 0.2, "deterministic", 0.0, {}), **changes)


def test_certified_compares_exactly():
    assert row(radius=36 / 255).certified(Fraction(36 / 255))
    exact = Fraction(36, 255)
    nearest = 36 / 255
    below = math.nextafter(nearest, 0) if Fraction(nearest) >= exact else nearest
    assert not row(radius=below).certified(exact)
    assert row(radius=math.nextafter(below, 1)).certified(exact)
    assert not row(radius=0.141).certified(exact)  # 36/255 = 0.14117…
    assert not row(prediction=2).certified(Fraction(1, 100))
    assert not row(radius=-math.inf).certified(Fraction(0))
    assert row(radius=math.inf).certified(Fraction(10))


def linear_network(bias: float) -> nn.Module:
    """logit_0 − logit_1 = 2·x_0 + bias·2, so every certified radius is known."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]]))
        model[1].bias.copy_(torch.tensor([bias, -bias]))
    return model.eval()


@pytest.mark.parametrize("name", ["global-product", "local-product", "local-lip", "crown"])
def test_radius_of_a_known_network(name):
    x = torch.tensor([0.5, 0.25, 0.0]).double().reshape(3, 1, 1, 1).expand(3, 1, 2, 2)
    certifier = make_certifier(name, linear_network(0.0), x[:1], radius_steps=12)
    verdict = certifier(x, torch.zeros(3, dtype=torch.int64), [Fraction(1, 10), Fraction(1, 4), Fraction(4, 10)])
    assert verdict.kind == "deterministic" and verdict.failure_probability == 0
    assert 0.499 < verdict.radius[0] < 0.5
    assert 0.249 < verdict.radius[1] < 0.25  # at 1/4 exactly the logits tie
    assert verdict.radius[2] == -math.inf  # a tie at the sample itself certifies nothing


@pytest.mark.parametrize("name", CERTIFIERS)
def test_no_attack_within_a_certified_radius(name, network, data):
    model, x = network.double(), data.images[:8].double()
    predictions = model(x).argmax(dim=1)
    certifier = make_certifier(name, model, x[:1], radius_steps=3)
    verdict = certifier(x, predictions, [Fraction(1, 100), Fraction(1, 2)])
    assert name == "ibp" or (verdict.radius > 0).sum() >= 4
    for b in range(len(x)):
        if verdict.radius[b] > 0:
            radius = verdict.radius[b].item()
            direction = torch.randn(200, 1, 8, 8, dtype=torch.float64)
            moved = x[b] + radius * direction / direction.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
            assert (model(moved).argmax(1) == predictions[b]).all()
    for radius in (0.01, 0.1):
        safe = survives_pgd(network.float(), x.float(), predictions, radius, steps=30)
        assert not (~safe & (verdict.radius >= radius)).any()


def test_order_of_the_certificates(network, data):
    """Per sample: global ≤ local product ≤ composed, up to the resolution of the bisection."""
    model, x = network.double(), data.images[:6].double()
    predictions = model(x).argmax(dim=1)
    found = []
    for name in ("global-product", "local-product", "local-lip"):
        certifier = make_certifier(name, model, x[:1], "deterministic", radius_steps=5)
        found.append(certifier(x, predictions, [Fraction(1, 20)]).radius.clamp(min=0))
    resolution = 0.05 / 2**5
    assert (found[0] <= found[1] + resolution).all() and (found[1] <= found[2] + resolution).all()
    assert found[2].mean() > 1.2 * found[0].mean()


def test_delta_is_divided_among_the_verdicts(network, data):
    model, x = network.double(), data.images[:4].double()
    certifier = make_certifier("local-lip", model, x[:1], "probabilistic", delta=1e-4, radius_steps=3)
    verdict = certifier(x, model(x).argmax(dim=1), [Fraction(1, 10), Fraction(1, 5)])
    assert verdict.kind == "probabilistic" and verdict.failure_probability == 1e-4
    assert certifier.stages[-1].bounded.last_certificate[1] == pytest.approx(
        1e-4 / 7
    )  # two radii, three steps, two global bounds


def test_shards_and_resuming_give_the_same_rows(tmp_path, network, data):
    certify_shard(network, data, SETTINGS, tmp_path / "one", "id", batch_size=10)
    for rank in range(3):
        certify_shard(network, data, SETTINGS, tmp_path / "three", "id", batch_size=4, rank=rank, processes=3)

    class Stop(Exception):
        pass

    def stop(count):
        raise Stop

    with pytest.raises(Stop):
        certify_shard(network, data, SETTINGS, tmp_path / "cut", "id", batch_size=10, progress=stop)
    assert len(read_rows(tmp_path / "cut")) == 10
    part = tmp_path / "cut" / "rows-0-of-1.csv"
    part.write_bytes(part.read_bytes()[:-9])  # the last row is cut in half, as by SIGKILL
    assert len(read_rows(tmp_path / "cut")) == 9
    certify_shard(network, data, SETTINGS, tmp_path / "cut", "id", batch_size=10)
    one, three, cut = (read_rows(tmp_path / name) for name in ("one", "three", "cut"))
    assert [r.index for r in one] == [r.index for r in three] == [r.index for r in cut] == list(range(23))
    for rows in (three, cut):
        assert [r.prediction for r in rows] == [r.prediction for r in one]
        assert [r.radius for r in rows] == pytest.approx([r.radius for r in one], rel=1e-6)
    assert one[0].margin > 0 and one[0].certificate == "deterministic"


def test_other_settings_or_networks_are_refused(tmp_path, network, data):
    certify_shard(network, data, SETTINGS, tmp_path, "id")
    with pytest.raises(CheckpointError, match="another model"):
        certify_shard(network, data, SETTINGS, tmp_path, "other")
    with pytest.raises(CheckpointError, match="other settings"):
        certify_shard(network, data, replace(SETTINGS, eps="0.1"), tmp_path, "id")


def test_identity(network):
    before = identity_of(network, "digits")
    assert before == identity_of(network, "digits") != identity_of(network, "mnist")
    nn.init.zeros_(network[0].bias)
    network[0].bias.data[0] = 1e-7
    assert identity_of(network, "digits") != before


def test_summary_and_files(tmp_path, network, data):
    settings = CertifySettings("0.05,36/255", bound="local-product", pgd_steps=3)
    certify_shard(network, data, settings, tmp_path, "id")
    summary = write_merged(tmp_path, settings)
    rows = read_rows(tmp_path)
    for line, eps in zip(summary["table"], (Fraction(1, 20), Fraction(36, 255)), strict=True):
        assert line["certified"] == sum(r.certified(eps) for r in rows) / 23
        assert line["certified"] <= line["pgd"] <= summary["clean"]
    lines = (tmp_path / "certificates.csv").read_text().splitlines()
    assert len(lines) == 24
    assert lines[0].split(",")[-4:] == ["certified@0.05", "certified@36/255", "pgd@0.05", "pgd@36/255"]
    draw_certified_accuracy({"a": rows}, tmp_path / "figure.png", {"a": {0.05: 0.5}})
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_curve():
    rows = [row(radius=0.1), row(radius=0.2), row(radius=0.4, prediction=0), row(radius=-math.inf)]
    grid, accuracy = certified_curve(rows, points=2)
    assert grid == [0.0, 0.1, 0.2] and accuracy == [0.5, 0.5, 0.25]


def test_weakest_kind_is_reported():
    rows = [row(), row(index=1, certificate="probabilistic", delta=1e-6)]
    summary = summarise(rows, SETTINGS)
    assert summary["certificate"] == "probabilistic" and summary["delta_per_sample"] == 1e-6


def test_errors(network, data):
    x = data.images[:1]
    with pytest.raises(CertificateError, match="certifies nothing"):
        make_certifier("local-lip", network, x, "estimate")
    with pytest.raises(UnknownMethodError, match="local-product"):
        make_certifier("nonsense", network, x)
    with pytest.raises(ConfigError, match="no certified samples"):
        summarise([], SETTINGS)
    with pytest.raises(ConfigError, match="epsilon"):
        CertifySettings("large")


def test_pgd_finds_what_is_there():
    """On a linear network the attack succeeds just beyond the known radius and never within it."""
    model = linear_network(0.0)
    x = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    x[0, 0, 0, 0] = 0.3
    label = torch.tensor([0])
    model[1].bias.data.copy_(torch.tensor([-0.2, 0.2]))  # the boundary is at x_0 = 0.2
    model = model.float()
    assert survives_pgd(model, x.float(), label, 0.099, steps=50).item()
    assert not survives_pgd(model, x.float(), label, 0.101, steps=50).item()
    assert not survives_pgd(model, x.float(), torch.tensor([1]), 0.0, steps=5).item()


def rows_text(folder) -> list[str]:
    """All rows as they are on disk, by index."""
    lines = [line for path in folder.glob("rows-*.csv") for line in path.read_text().splitlines()]
    whole = [line for line in lines if re.fullmatch(r"\d+,.*,[01]?,[0-9a-f]{16}", line)]
    return sorted(whole, key=lambda line: int(line.split(",")[0]))


def stopped_after(network, data, settings, folder, chunks: int, batch_size: int = 5) -> None:
    count = iter(range(1, 100))

    class Stop(Exception):
        pass

    def stop(_):
        if next(count) >= chunks:
            raise Stop

    with pytest.raises(Stop):
        certify_shard(network, data, settings, folder, "id", batch_size=batch_size, progress=stop)


def test_a_stopped_or_divided_run_ends_with_the_same_rows_to_the_bit(tmp_path, network, data):
    """With chance in it: the norms' random starts, and the attack's."""
    settings = CertifySettings("0.05", bound="local-product", certificate="probabilistic", pgd_steps=4, radius_steps=1)
    data = Subset(data, torch.arange(13))
    certify_shard(network, data, settings, tmp_path / "whole", "id", batch_size=5)
    for name in ("cut", "two"):  # the seed of a run is drawn with its first row, and kept
        (tmp_path / name).mkdir()
        (tmp_path / name / "certify.json").write_bytes((tmp_path / "whole" / "certify.json").read_bytes())
    stopped_after(network, data, settings, tmp_path / "cut", 2)
    part = tmp_path / "cut" / "rows-0-of-1.csv"
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join(lines[:-3]) + lines[-3][:20])  # three rows of a chunk are lost, one is half there
    torch.manual_seed(99)
    certify_shard(network, data, settings, tmp_path / "cut", "id", batch_size=5)
    for rank in (1, 0):
        certify_shard(network, data, settings, tmp_path / "two", "id", batch_size=5, rank=rank, processes=2)
    whole = rows_text(tmp_path / "whole")
    assert len(whole) == 13 and whole == rows_text(tmp_path / "cut") == rows_text(tmp_path / "two")


def test_chance_of_a_sample_is_its_own(network, data):
    """The attack on a sample begins where it does whatever the batch."""
    from lirpa_lip.training.attack import directions

    x, seeds = data.images[:6], [11, 12, 13, 14, 15, 16]
    whole = directions(x, seeds)
    assert torch.equal(whole[2:4], directions(x[2:4], seeds[2:4]))
    assert not torch.equal(whole[0], whole[1]) and (whole.flatten(1).norm(dim=1) <= 1).all()
    labels = network(x).argmax(1)
    for eps in (0.2, 0.5, 1.0):
        together = survives_pgd(network, x, labels, eps, 5, seed=seeds)
        alone = [
            survives_pgd(network, x[i : i + 1], labels[i : i + 1], eps, 5, seed=[seeds[i]]).item() for i in range(6)
        ]
        assert together.tolist() == alone


def test_more_samples_and_radii_reuse_what_is_there(tmp_path, network, data, monkeypatch):
    from lirpa_lip.training import certification

    tried = []
    make = certification.make_certifier

    def counting(*args, **options):
        certifier = make(*args, **options)

        class Counting:
            prepare = staticmethod(certifier.prepare)

            def __call__(self, x, predictions, eps, refuted):
                tried.append(len(x))
                return certifier(x, predictions, eps, refuted)

        return Counting()

    monkeypatch.setattr(certification, "make_certifier", counting)
    settings = CertifySettings("0.05", bound="local-product", certificate="probabilistic", pgd_steps=2)
    certify_shard(network, Subset(data, torch.arange(10)), settings, tmp_path, "id", batch_size=5)
    first = rows_text(tmp_path)
    certify_shard(network, data, settings, tmp_path, "id", batch_size=5)
    assert sum(tried) == 23 and rows_text(tmp_path)[:10] == first
    certify_shard(network, data, replace(settings, eps="0.05,1/20,0.2"), tmp_path, "id", batch_size=5)
    rows, new = read_rows(tmp_path), Fraction(1, 5)
    before = {int(line.split(",")[0]): float(line.split(",")[4]) for line in first}
    assert all(row.radius >= before.get(row.index, -math.inf) for row in rows)
    assert all(new in row.eps and row.decided(new) and set(row.pgd) == {"0.05", "0.2"} for row in rows)
    assert sum(tried) < 2 * 23, "rows that decide the new radius already are not worked on again"
    assert all(0 < row.delta <= settings.delta for row in rows)
    summary = write_merged(tmp_path, replace(settings, eps="0.05,0.2"), 23)
    assert summary["samples"] == 23 and [line["eps"] for line in summary["table"]] == ["0.05", "0.2"]
    assert write_merged(tmp_path, replace(settings, eps="0.05,0.2"), 10)["samples"] == 10
    with pytest.raises(CheckpointError, match=r"--eps 0\.05,0\.2,0\.7"):
        certify_shard(network, data, replace(settings, eps="0.7"), tmp_path, "id", batch_size=5)


@pytest.mark.parametrize("change", ["images", "labels"])
def test_rows_of_other_data_are_refused(tmp_path, network, data, change):
    """Of the same size: swapped labels, one pixel."""
    certify_shard(network, data, SETTINGS, tmp_path, "id")
    images, labels = data.images.clone(), data.labels.clone()
    if change == "images":
        images[17, 0, 3, 3] += 1e-6
    else:
        labels[17] = (labels[17] + 1) % 4
    with pytest.raises(CheckpointError, match="other data: sample 17"):
        certify_shard(network, TensorSource(images, labels), SETTINGS, tmp_path, "id")


@pytest.mark.parametrize(
    "change", [{"bound": "ibp"}, {"delta": 1e-3}, {"certificate": "deterministic"}, {"image_box": True}, {"seed": 1},
               {"radius_steps": 3}, {"pgd_steps": 1}]
)  # fmt: skip
def test_every_setting_that_changes_a_verdict_is_part_of_a_run(tmp_path, network, data, change):
    certify_shard(network, data, SETTINGS, tmp_path, "id")
    (name,) = change
    with pytest.raises(CheckpointError, match=f"other settings.*{name} was"):
        certify_shard(network, data, replace(SETTINGS, **change), tmp_path, "id")


def test_the_seed_of_a_run_is_fresh_and_kept(tmp_path, network, data):
    import json

    seeds = []
    for name in ("a", "b", "a"):
        certify_shard(network, data, SETTINGS, tmp_path / name, "id")
        seeds.append(json.loads((tmp_path / name / "certify.json").read_text())["seed"])
    assert seeds[0] == seeds[2] != seeds[1]


def test_versions_are_part_of_a_run(tmp_path, network, data, monkeypatch):
    from lirpa_lip.training import claim

    certify_shard(network, data, SETTINGS, tmp_path, "id")
    monkeypatch.setattr(claim, "versions", lambda: {"torch": "9.9"})
    with pytest.raises(CheckpointError, match=r"torch was .*, is '9\.9'"):
        certify_shard(network, data, SETTINGS, tmp_path, "id")


def test_identity_holds_the_layers_and_the_classes():
    torch.manual_seed(0)
    relu = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    tanh = nn.Sequential(relu[0], nn.Tanh())
    assert identity_of(relu, "a, b") != identity_of(tanh, "a, b")  # the same weights
    assert identity_of(relu, "a, b") != identity_of(relu, "b, a")


@pytest.mark.parametrize("name", ["local-product", "local-lip", "sdp-crown"])
def test_local_radii_are_never_below_the_global_one(name, network, data):
    model, x = network.double(), data.images.double()
    predictions = model(x).argmax(1)
    with seeds_of(5):
        whole = make_certifier("global-product", model, x[:1])(x, predictions, [Fraction(1, 50)])
    with seeds_of(5):
        local = make_certifier(name, model, x[:1], radius_steps=1)(x, predictions, [Fraction(1, 50), Fraction(5)])
    assert (local.radius >= whole.radius * (1 - 1e-9)).all() and (local.radius > whole.radius).any()
    assert (local.radius < local.failed).all()


def test_a_kind_is_that_of_the_samples_at_hand(network, data):
    """Not of samples that were certified before them."""
    model, x = network.double(), data.images[:4].double()
    certifier = make_certifier("ibp", model, x[:1])
    certifier._kind = "probabilistic"
    assert certifier(x, model(x).argmax(1), [Fraction(1, 100)]).kind == "deterministic"


def test_a_full_disk_keeps_what_is_there(tmp_path, network, data, monkeypatch):
    import errno
    from pathlib import Path

    certify_shard(network, data, SETTINGS, tmp_path, "id")
    write_merged(tmp_path, SETTINGS)
    before = (tmp_path / "certificates.csv").read_bytes()

    def full(self, content):
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CheckpointError, match=r"disk is full.*kept.*same command"):
        write_merged(tmp_path, SETTINGS)
    assert (tmp_path / "certificates.csv").read_bytes() == before
    assert not list(tmp_path.glob(".*writing"))


def test_missing_samples_are_not_summarised_away(tmp_path, network, data):
    certify_shard(network, data, SETTINGS, tmp_path, "id", batch_size=5, rank=1, processes=2)
    with pytest.raises(CheckpointError, match="10 of 23 samples"):
        write_merged(tmp_path, SETTINGS, 23)


def test_a_curve_is_drawn_only_where_it_is_known():
    rows = [row(radius=0.125, failed=0.25), row(radius=0.375, failed=0.5), row(radius=0.5, failed=0.51)]
    grid, share = known_curve(rows, points=8)
    known = [not math.isnan(value) for value in share]
    assert [g for g, k in zip(grid, known, strict=True) if not k] == [0.1875, 0.4375]
    assert unknown_share(rows, [0.1875, 0.3, 0.4375]) == pytest.approx([1 / 3, 0, 1 / 3])
