"""The losses against their formulas, written out sample by sample."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from lirpa_lip.errors import ConfigError, ShapeError, UnknownMethodError
from lirpa_lip.losses import (
    LOSSES,
    BCPLoss,
    CalibratedMarginLoss,
    CRMLoss,
    EMMALoss,
    FeatureRegion,
    GloRoLoss,
    LogitAnnealingLoss,
    make_loss,
    mixed_loss,
    worst_case_logits,
)


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=g, dtype=torch.float64)
    labels = torch.randint(0, 4, (6,), generator=g)
    lipschitz = torch.rand(6, 4, generator=g, dtype=torch.float64).scatter(1, labels[:, None], 0.0)
    return logits, lipschitz, labels


def test_worst_case_logits(batch):
    logits, lipschitz, labels = batch
    eps = torch.linspace(0, 1, 6, dtype=torch.float64)
    worst = worst_case_logits(logits, lipschitz, eps, labels)
    for b in range(6):
        for j in range(4):
            assert worst[b, j] == logits[b, j] + eps[b] * lipschitz[b, j]


def test_infinite_bound_fails_closed(batch):
    """A bound that could not be computed is +inf: it certifies nothing, and leaves the label's own logit alone."""
    logits, lipschitz, labels = batch
    worst = worst_case_logits(logits, torch.full_like(lipschitz, torch.inf), 0.0 + 1e-3, labels)
    own = worst.gather(1, labels[:, None])
    torch.testing.assert_close(own, logits.gather(1, labels[:, None]))
    assert (worst.scatter(1, labels[:, None], torch.inf) == torch.inf).all()


def test_nan_is_not_turned_into_zero(batch):
    logits, lipschitz, labels = batch
    worst = worst_case_logits(logits, torch.full_like(lipschitz, torch.nan), 0.1, labels)
    assert worst.isnan().sum() == worst.numel() - len(labels)


def test_region_never_hurts_and_helps(batch):
    logits, _, labels = batch
    weight = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    zeros, radius = torch.zeros(6, 5, dtype=torch.float64), torch.full((6,), 0.2, dtype=torch.float64)
    region = FeatureRegion(zeros, radius, zeros - 0.05, zeros + 0.05, weight)
    pairs = torch.cdist(weight, weight)[labels]
    plain = worst_case_logits(logits, pairs, 0.2, labels)
    with_region = worst_case_logits(logits, pairs, 0.2, labels, region)
    assert (with_region <= plain + 1e-12).all() and (with_region < plain - 1e-3).any()


def test_bcp(batch):
    logits, lipschitz, labels = batch
    expected = F.cross_entropy(logits + 0.3 * lipschitz, labels)
    torch.testing.assert_close(BCPLoss()(logits, lipschitz, 0.3, labels), expected)


def test_gloro(batch):
    logits, lipschitz, labels = batch
    terms = []
    for b, y in enumerate(labels.tolist()):
        bottom = max(logits[b, j] + 0.3 * lipschitz[b, j] for j in range(4) if j != y)
        terms.append(-logits[b, y] + torch.logsumexp(torch.cat([logits[b], bottom.reshape(1)]), 0))
    torch.testing.assert_close(GloRoLoss()(logits, lipschitz, 0.3, labels), torch.stack(terms).mean())


def test_emma(batch):
    logits, lipschitz, labels = batch
    enlarged = logits.clone()
    for b, y in enumerate(labels.tolist()):
        for j in range(4):
            if j != y:
                reach = min(max((logits[b, y] - logits[b, j]).item() / lipschitz[b, j].item(), 0.0), 0.3)
                enlarged[b, j] += reach * lipschitz[b, j]
    torch.testing.assert_close(EMMALoss()(logits, lipschitz, 0.3, labels), F.cross_entropy(enlarged, labels))


def test_emma_stops_at_the_label(batch):
    """A rival never overtakes by more than it leads already, however large eps is."""
    logits, lipschitz, labels = batch
    at_most = torch.maximum(logits, logits.gather(1, labels[:, None]))
    limit = F.cross_entropy(at_most, labels)
    torch.testing.assert_close(EMMALoss()(logits, lipschitz + 0.01, 1e6, labels), limit)


def test_crm(batch):
    logits, lipschitz, labels = batch
    loss, eps = CRMLoss(weight=2.0, sharpness=50.0), 0.5
    penalty = 0.0
    for b, y in enumerate(labels.tolist()):
        margins = [(logits[b, y] - logits[b, j]).item() for j in range(4) if j != y]
        if min(margins) > 0:
            radii = [
                m / lipschitz[b, j].item() / eps for m, j in zip(margins, [j for j in range(4) if j != y], strict=True)
            ]
            soft = -math.log(sum(math.exp(-50.0 * r) for r in radii)) / 50.0
            assert soft <= min(radii) + 1e-12
            penalty += max(0.0, 1 - soft)
    expected = F.cross_entropy(logits, labels) + 2.0 * penalty / 6
    torch.testing.assert_close(loss(logits, lipschitz, eps, labels), expected)


def test_logit_annealing(batch):
    logits, lipschitz, labels = batch
    loss, terms = LogitAnnealingLoss(temperature=0.7, offset=1.5, annealing=3.0), []
    for b, y in enumerate(labels.tolist()):
        asked = []
        for j in range(4):
            margin, rate = (logits[b, y] - logits[b, j]).item(), lipschitz[b, j].item()
            raised = 0.0 if j == y else min(max(margin / rate, 0.0), 0.3) * rate
            asked.append((logits[b, j].item() + raised - 1.5 * (j == y)) / 0.7)
        p = math.exp(asked[y]) / sum(map(math.exp, asked))
        terms.append(-0.7 * (1 - p) ** 3 * math.log(p))
    assert loss(logits, lipschitz, 0.3, labels).item() == pytest.approx(sum(terms) / 6, rel=1e-12)


def test_logit_annealing_without_annealing_is_emma(batch):
    logits, lipschitz, labels = batch
    plain = LogitAnnealingLoss(temperature=1.0, offset=0.0, annealing=0.0)
    torch.testing.assert_close(plain(logits, lipschitz, 0.3, labels), EMMALoss()(logits, lipschitz, 0.3, labels))


def test_logit_annealing_leaves_large_margins_alone():
    """A sample that has its margin pulls less, relative to one without, than in the cross-entropy."""

    def pull(annealing: float) -> float:
        logits = torch.tensor([[0.5, 0.0], [6.0, 0.0]], dtype=torch.float64, requires_grad=True)
        rates = torch.tensor([[0.0, 1.0]] * 2, dtype=torch.float64)
        LogitAnnealingLoss(annealing=annealing)(logits, rates, 0.1, torch.tensor([0, 0])).backward()
        return (logits.grad[1, 0] / logits.grad[0, 0]).item()

    assert 0 < pull(5.0) < 1e-3 * pull(0.0)


def test_calibrated_margin(batch):
    logits, lipschitz, labels = batch
    loss, terms = CalibratedMarginLoss(slack=0.2), []
    sigma = 0.3 / math.log(1.8 / 0.2)
    for b, y in enumerate(labels.tolist()):
        radii = [((logits[b, y] - logits[b, j]) / lipschitz[b, j]).item() for j in range(4) if j != y]
        terms.append(math.log1p(sum(math.exp((0.3 - r) / sigma) for r in radii)))
    assert loss(logits, lipschitz, 0.3, labels).item() == pytest.approx(sum(terms) / 6, rel=1e-12)
    # Neither the logits' scale nor the bound's is of any use to it.
    torch.testing.assert_close(loss(7 * logits, 7 * lipschitz, 0.3, labels), loss(logits, lipschitz, 0.3, labels))


def test_calibration_of_two_classes():
    """p / 2, 1/2 and 1 − p / 2 at certified radii of 0, eps and 2 eps; eps = 0 is the cross-entropy."""
    logits = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    rates, loss = torch.tensor([[0.0, 2.0]], dtype=torch.float64), CalibratedMarginLoss(slack=0.3)
    for row, p in zip(logits, (0.15, 0.5, 0.85), strict=True):
        assert loss(row[None], rates, 0.5, torch.tensor([0])).item() == pytest.approx(-math.log(p))
    labels, eps = torch.tensor([0, 0, 0]), torch.tensor([0.0, 0.5, 0.0], dtype=torch.float64)
    mixed = (math.log(2) + math.log(2) + math.log1p(math.exp(-2))) / 3
    assert loss(logits, rates.expand(3, 2), eps, labels).item() == pytest.approx(mixed)


def test_mixed_loss(batch):
    logits, lipschitz, labels = batch
    robust = GloRoLoss()(logits, lipschitz, 0.3, labels)
    torch.testing.assert_close(mixed_loss(logits, robust, labels, 1.0), F.cross_entropy(logits, labels))
    assert mixed_loss(logits, robust, labels, 0.0) == robust
    mean = (F.cross_entropy(logits, labels) + robust) / 2
    torch.testing.assert_close(mixed_loss(logits, robust, labels, 0.5), mean)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("classes", [2, 3, 200])
def test_any_number_of_classes_and_gradients(name: str, classes: int):
    g = torch.Generator().manual_seed(classes)
    logits = torch.randn(3, classes, generator=g).requires_grad_()
    labels = torch.randint(0, classes, (3,), generator=g)
    lipschitz = torch.rand(3, classes, generator=g).scatter(1, labels[:, None], 0.0).requires_grad_()
    make_loss(name)(logits, lipschitz, 0.5, labels).backward()
    assert torch.isfinite(logits.grad).all()
    assert lipschitz.grad is None or torch.isfinite(lipschitz.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_degenerate(name: str):
    """eps = 0, Lipschitz constants of zero, equal logits: finite loss and gradients."""
    logits = torch.zeros(2, 3, requires_grad=True)
    loss = make_loss(name)(logits, torch.zeros(2, 3), 0.0, torch.tensor([0, 2]))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


def test_errors(batch):
    logits, lipschitz, labels = batch
    with pytest.raises(UnknownMethodError, match="gloro"):
        make_loss("nonsense")
    for name in LOSSES:
        with pytest.raises(ShapeError, match="batch, classes"):
            make_loss(name)(logits, lipschitz[:, :3], 0.1, labels)
    with pytest.raises(ConfigError, match="sharpness"):
        CRMLoss(sharpness=0.0)
    with pytest.raises(ConfigError, match="slack"):
        CalibratedMarginLoss(slack=1.0)
    with pytest.raises(ConfigError, match="temperature"):
        LogitAnnealingLoss(temperature=0.0)
