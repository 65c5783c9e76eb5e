"""`lirpa_lip.certify`: verdict, radius, kind and δ of every sample, in one call."""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from lirpa_lip.errors import NonFiniteError, ShapeError, TrainingModeError
from lirpa_lip.memory_limit import Halving, memory_limit
from lirpa_lip.ranges import COUNT, NOT_NEGATIVE
from lirpa_lip.results import Certificate, Kind
from lirpa_lip.training.certifiers import Certifier, Verdict, make_certifier
from lirpa_lip.training.epsilon import parse_epsilon
from lirpa_lip.training.progress import Pace, said_late
from lirpa_lip.training.rows import reaches


@dataclass(frozen=True)
class Certified:
    """What is known of one sample.

    Attributes:
        certified: the prediction is right, and the same on the whole closed ball of the radius that was asked for.
        prediction, label: classes; ``label`` is the prediction where no labels were given.
        radius: largest radius known to be safe for the prediction, right or wrong; −inf where not even the sample
            itself is (a tie).
        worth: the certificate of all that is said of this sample; also as ``kind`` and ``delta``.
    """

    certified: bool
    prediction: int
    label: int
    radius: float
    worth: Certificate

    @property
    def kind(self) -> Kind:
        """``"deterministic"`` or ``"probabilistic"``."""
        return self.worth.kind

    @property
    def delta(self) -> float:
        """Failure probability, 0.0 for a deterministic certificate."""
        return self.worth.delta


def certify(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    eps: float | str | Fraction = 0.1,
    *,
    method: str = "sdp-crown",
    certificate: str = "auto",
    delta: float = 1e-6,
    radius_steps: int = 2,
    image_box: tuple[float, float] | None = None,
    inference: str | None = None,
    batch_size: int = 10,
    max_memory: int | str | None = None,
    progress: bool | None = None,
) -> list[Certified]:
    """Certifies that a classifier's predictions stay the same on ℓ₂ balls::

        for c in lirpa_lip.certify(model, images, labels, eps="36/255"):
            print(c.certified, c.radius, c.kind, c.delta)

    Args:
        model: in eval mode, from ``x`` to logits ``(batch, classes)``. It is not changed.
        x: ``(batch, *input shape)``.
        y: ``(batch,)`` integer labels; None to certify the predictions themselves.
        eps: radius, read exactly: 0.1 is a tenth, "36/255" that fraction.
        method: one of ``lirpa_lip.methods.names_at("certify")``.
        certificate: what norms must be worth: ``"auto"``, ``"deterministic"`` or ``"probabilistic"``.
        delta: failure probability of everything that is said of one sample, at most.
        radius_steps: verdicts spent on the radius; with 0 it is ``eps`` or what the global bound gives, and a sample is
            out with the first that decides it: its label, global bounds, the local product, ``method``. Of the last two
            those are computed that a forecast leaves hope for.
        image_box: (low, high) of possible inputs; None for the whole ball.
        inference: the arithmetic that the network is run in, see ``LocalLipConfig``; None for the default.
        batch_size: samples that are bounded at once, at most: a batch that does not fit into memory is halved.
        max_memory: what the call may take, in bytes or as "4GiB"; None for half of what is free. The whole process is
            held to it meanwhile (Linux, and GPUs), so that too large a batch is not its end.
        progress: whether to show on standard error how far it is, once two seconds have passed; None where that is a
            terminal.

    Returns:
        One record per sample, in order.

    Raises:
        UnknownMethodError, ConfigError, CertificateError: a setting that cannot be.
        ShapeError: ``y`` does not fit ``x``, or the output is not ``(batch, classes)`` with two classes at least.
        TrainingModeError: the model is in training mode.
        NonFiniteError: an input is NaN or infinite.
        RuntimeError: memory does not suffice for one sample.

    Example:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.eye(2))  # the larger of two numbers
        >>> x = torch.tensor([[1.0, 0.0], [0.5, 0.4]])
        >>> first, second = certify(model.eval(), x, torch.tensor([0, 0]), eps="1/10", method="local-lip")
        >>> first.certified, round(first.radius, 4), first.kind  # 1/√2
        (True, 0.7071, 'deterministic')
        >>> second.certified, round(second.radius, 4)  # 0.1/√2 is less than 0.1
        (False, 0.0707)
    """
    exact = parse_epsilon(eps)
    COUNT.check("batch_size", batch_size)
    NOT_NEGATIVE.check("radius_steps", radius_steps)
    _check(model, x, y)
    shown = sys.stderr.isatty() if progress is None else progress
    advance = said_late("certifying", "samples", Pace(len(x)), sys.stderr) if shown else lambda count: None
    options: dict[str, Any] = {"radius_steps": radius_steps, "image_box": image_box, "inference": inference}
    certifier: Certifier | None = None
    found: list[Certified] = []

    def verdicts(_: int, index: Tensor) -> list[Certified]:
        nonlocal certifier
        images = x[index].double()
        with torch.no_grad():
            predictions = _logits(wide, images).argmax(dim=1)
        labels = predictions if y is None else y[index].to(predictions)
        certifier = certifier or make_certifier(method, wide, images[:1], certificate, delta, **options)
        # with a search, the radius of a wrong prediction is wanted too
        wrong = torch.where(predictions == labels, torch.inf, -torch.inf) if radius_steps == 0 else None
        return _records(certifier(images, predictions, [exact], wrong), predictions, labels, exact)

    with torch.random.fork_rng(devices=[]), memory_limit(max_memory, x.device):  # the caller's own chance is left alone
        wide, halving = copy.deepcopy(model).double(), Halving()
        for chunk in torch.arange(len(x)).split(batch_size):
            for part in halving(verdicts, chunk):
                found += part
                advance(len(part))
    return found


def _records(verdict: Verdict, predictions: Tensor, labels: Tensor, eps: Fraction) -> list[Certified]:
    return [
        Certified(prediction == label and reaches(radius, eps), prediction, label, radius, verdict.worth)
        for prediction, label, radius in zip(
            predictions.tolist(), labels.tolist(), verdict.radius.tolist(), strict=True
        )
    ]


def _check(model: nn.Module, x: Tensor, y: Tensor | None) -> None:
    if model.training:
        raise TrainingModeError("model", type(model).__name__)
    if not bool(torch.isfinite(x).all()):
        raise NonFiniteError("x", "inputs are finite numbers")
    if y is not None and (y.shape != x.shape[:1] or y.is_floating_point()):
        raise ShapeError(f"y has shape {tuple(y.shape)} and type {y.dtype}; give one integer label for each sample.")


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    logits: Tensor = model(x)
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ShapeError(
            f"the model's output has shape {tuple(logits.shape)}, expected (batch, classes) with at least two classes."
        )
    return logits
