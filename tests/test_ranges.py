"""What a number may be: the same demand in files, flags and help, and nothing infinite or NaN anywhere."""

from __future__ import annotations

import math

import pytest
from click.testing import CliRunner

from lirpa_lip import LocalLipConfig
from lirpa_lip.cli import main
from lirpa_lip.errors import ConfigError
from lirpa_lip.losses.global_bound import GlobalBound
from lirpa_lip.ranges import BETWEEN, COUNT, FINITE, NOT_NEGATIVE, POSITIVE, SEED, SHARE, check_delta
from lirpa_lip.training.certification import CertifySettings
from lirpa_lip.training.certifiers import make_certifier
from lirpa_lip.training.config import TrainConfig, config_from
from lirpa_lip.training.models import build_model

ALL = {"finite": FINITE, "positive": POSITIVE, "not negative": NOT_NEGATIVE, "count": COUNT, "share": SHARE,
       "between": BETWEEN, "seed": SEED}  # fmt: skip


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nothing_infinite_lies_in_any_range(name, value):
    assert not ALL[name].holds(value)
    with pytest.raises(ConfigError, match="x must"):
        ALL[name].check("x", value)


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("finite", [-1e300, 0], []),
        ("positive", [1e-300, 5], [0, -1]),
        ("not negative", [0, 5], [-1e-9]),
        ("count", [1, 10**9], [0, -5]),
        ("share", [0, 1], [-0.1, 1.1]),
        ("between", [0.5], [0, 1]),
        ("seed", [0, 2**63 - 1], [-1, 2**63]),
    ],
)
def test_ends(name, inside, outside):
    assert all(ALL[name].holds(value) for value in inside) and not any(ALL[name].holds(value) for value in outside)
    for value in outside:
        with pytest.raises(ConfigError, match="x must"):
            ALL[name].check("x", value)


@pytest.mark.parametrize("delta", [0, 1, 2, -0.1, math.nan, math.inf])
def test_a_failure_probability_is_checked_before_it_is_divided(delta):
    import torch

    model, sample = build_model("mlp-small", (1, 4, 4), 3).eval(), torch.zeros(1, 1, 4, 4)
    calls = [
        lambda: check_delta(delta),
        lambda: CertifySettings("0.1", delta=delta),
        lambda: make_certifier("local-product", model, sample, delta=delta),
        lambda: make_certifier("global-product", model, sample, delta=delta),
        lambda: make_certifier("ibp", model, sample, delta=delta),
        lambda: GlobalBound(model, sample, "probabilistic", delta=delta),
        lambda: LocalLipConfig(delta=delta),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match="strictly between 0 and 1"):
            call()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", math.nan), ("lr", -1), ("lr", 0), ("end_lr", math.inf), ("weight_decay", math.nan), ("epochs", math.inf),
        ("epochs", "1e400"), ("limit", -5), ("limit", 0), ("clip_grad", -1), ("clip_grad", 0), ("threshold", math.nan),
        ("threshold", -1), ("sparsity", math.inf), ("saturation", math.nan), ("eps", "1e9"), ("eps", "1e400"),
        ("train_eps", "nan"), ("kappa", math.nan), ("ema", 1), ("ema", 0), ("warmup", -1), ("ramp", math.inf),
        ("validation", math.nan), ("validation", -0.5), ("seed", -1), ("seed", 2**70), ("image_size", 0),
        ("batch_size", -2), ("log_every", 0), ("checkpoint_every", 0), ("bound_iterations", 0), ("lr", True),
        ("lr", [1e-3]), ("out", ["a"]),
    ],
)  # fmt: skip
def test_every_number_of_a_training_run(name, value):
    with pytest.raises(ConfigError, match=rf"run\.yaml.*{'epsilon' if 'eps' in name else name}"):
        config_from({name: value}, "run.yaml")


def test_every_number_of_a_training_run_has_a_range():
    from dataclasses import fields

    for item in fields(TrainConfig):
        if str(item.type).split(" | ")[0] in ("int", "float"):
            assert item.metadata["range"] is not None, item.name


FAULTS = [
    "certify RUN --delta 2",
    "certify RUN --delta nan",
    "certify RUN --batch-size 0",
    "certify RUN --limit -3",
    "certify RUN --eps 1e400",
    "certify RUN --eps 1e9",
    "certify RUN --eps 0.1,-1",
    "certify RUN --radius-steps -1",
    "certify RUN --pgd-steps -1",
    "certify RUN --bound nonsense",
    "train --lr nan",
    "train --lr -1",
    "train --clip-grad -1",
    "train --threshold nan",
    "train --sparsity inf",
    "train --eps 1e9",
    "train --eps 9",  # more than the diameter of 8 × 8 images
    "train --limit -5",
    "train --ema 1",
    "compare RUN --eps 0.1 --delta 2",
    "compare RUN --eps 1e400",
    "compare RUN --eps 0.1 --limit 0",
    "lipschitz RUN --limit 0",
    "lipschitz RUN --eps 1e400",
    "lipschitz RUN --time-limit nan",
    "monotonicity --eps nan",
    "monotonicity --samples 0",
    "monotonicity --range -1",
]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "r"
    options = "--dataset digits --arch mlp-small --loss plain --bound global-product --epochs 1 --limit 100"
    result = CliRunner().invoke(main, ["train", *options.split(), "--batch-size", "50", "--out", str(folder)])
    assert result.exit_code == 0, result.output
    return folder


@pytest.mark.parametrize("command", FAULTS)
def test_a_fault_is_one_line(command, run_folder, tmp_path):
    arguments = [str(run_folder) if a == "RUN" else a for a in command.split()]
    if arguments[0] in ("train", "certify"):
        arguments += ["--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code not in (0, -1) and isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output and "Error:" in result.output
    assert not list(tmp_path.rglob("*.csv"))


def test_help_says_the_range():
    text = CliRunner().invoke(main, ["certify", "--help"]).output
    assert "0 < x < 1" in text and "1 <= x" in text
    assert "0 < x < 1" in CliRunner().invoke(main, ["train", "--help"]).output
