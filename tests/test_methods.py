"""One name, one bound: the table of methods is where every door takes its names from."""

from __future__ import annotations

import warnings

import pytest
import torch
import yaml

from lirpa_lip import comparison, dispatch
from lirpa_lip.cli.terminal import MethodName
from lirpa_lip.errors import UnknownMethodError
from lirpa_lip.local import bounds as local_lip
from lirpa_lip.losses import BOUNDS, make_bound
from lirpa_lip.methods import CHANGED, METHODS, RENAMED, current_name, name_before, names_at
from lirpa_lip.search import bounds as jacobian_lip
from lirpa_lip.training.certification import CertifySettings
from lirpa_lip.training.certifiers import CERTIFIERS, make_certifier
from lirpa_lip.training.config import (
    _SINCE_FORMAT_1,
    TrainConfig,
    config_from,
    read_config,
    read_run_config,
    write_config,
)
from lirpa_lip.training.models import build_model


def test_every_door_takes_its_names_from_the_table():
    assert set(BOUNDS) == set(names_at("train"))
    assert CERTIFIERS == names_at("certify") and set(comparison.METHODS) == set(names_at("compare"))
    assert local_lip.METHODS == names_at("compute_bounds", "local")
    assert local_lip.CONSTANT_METHODS == names_at("local_lipschitz", "local")
    assert jacobian_lip.JACOBIAN_METHODS == names_at("local_lipschitz", "jacobian")
    assert set(names_at("compute_bounds", "auto_LiRPA")) <= set(dispatch.LIRPA_METHODS)
    assert all(comparison.METHODS[name][1] == METHODS[name].bounds for name in comparison.METHODS)


def test_names_before_and_now():
    for door in RENAMED:
        assert not set(RENAMED[door]) & set(names_at(door)) and set(RENAMED[door].values()) <= set(names_at(door))
        assert set(CHANGED[door]) <= set(names_at(door)) and set(CHANGED[door].values()) <= set(names_at(door))
    assert name_before("local-lip", "train") == "local-product" and name_before("composed", "train") == "local-lip"
    assert name_before("sdp-crown", "certify") == "sdp-crown"


@pytest.mark.parametrize(
    ("door", "name", "now"),
    [("certify", "global", "global-product"), ("certify", "composed", "local-lip"),
     ("certify", "composed-crown", "local-lip-crown"), ("train", "global", "global-product"),
     ("train", "composed", "local-lip")],
)  # fmt: skip
def test_old_names_work_with_a_warning_that_says_the_new_one(door, name, now):
    with pytest.warns(FutureWarning, match=f"'{now}'"):
        assert current_name(name, door) == now
    if door == "certify":
        with pytest.warns(FutureWarning, match=now):
            assert CertifySettings("0.1", bound=name).bound == now
    else:
        with pytest.warns(FutureWarning, match=now):
            assert config_from({"bound": name}).bound == now == TrainConfig(bound=now).bound


@pytest.mark.parametrize("door", ["certify", "train"])
def test_a_name_of_today_is_taken_without_a_word(door):
    """Also where it meant another bound in the release before: whoever types it has read today's help."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in names_at(door):
            assert current_name(name, door) == MethodName(door).convert(name, None, None) == name
        assert config_from({"bound": "local-lip"}).bound == "local-lip"
        assert CertifySettings("0.1", bound="local-lip").bound == "local-lip"
    with pytest.raises(UnknownMethodError, match="local-product"):
        current_name("magic", door)


def test_files_of_the_release_before_are_read_as_they_were_meant(tmp_path):
    """What it saved held every setting there was, and no mark; a file somebody wrote by hand is of today."""
    saved = {name: value for name, value in TrainConfig().to_dict().items() if name not in _SINCE_FORMAT_1}
    path = tmp_path / "config.yaml"
    for before, now in (("local-lip", "local-product"), ("composed", "local-lip"), ("global", "global-product")):
        path.write_text(yaml.safe_dump({**saved, "bound": before}))
        assert read_config(path)["bound"] == read_run_config(path)["bound"] == now
        path.write_text(yaml.safe_dump({"bound": before, "epochs": 3}))
        assert read_config(path)["bound"] == before and read_run_config(path)["bound"] == now
    write_config(TrainConfig(bound="local-lip"), path)
    assert read_config(path)["bound"] == read_run_config(path)["bound"] == "local-lip"


def test_a_name_means_one_bound_at_every_door():
    """The margins that certify, compare and compute_bounds find under one name are the same numbers."""
    torch.manual_seed(0)
    model, x = build_model("mlp-small", (1, 4, 4), 3).double().eval(), torch.rand(4, 1, 4, 4, dtype=torch.float64)
    from lirpa_lip import BoundedModule, BoundedTensor, LocalLipConfig, PerturbationLpNorm
    from lirpa_lip.margin import margin_specification
    from lirpa_lip.training.stages import Batch, least_margins

    rows = margin_specification(model(x).argmax(1), 3, torch.float64)
    config = LocalLipConfig(certificate="deterministic", norm_tolerance=1e-3)
    for name in ("local-lip", "sdp-crown"):
        bounded = BoundedModule(model, x[:1], bound_opts={"local_lip": config})
        ball = BoundedTensor(x, PerturbationLpNorm(norm=2, eps=0.05))
        there, _ = bounded.compute_bounds(x=(ball,), C=rows, method=name, bound_upper=False, decision_thresh=0.0)
        compared = comparison.make_method(name, model, x, 20, config).lower(x, rows, 0.05).lower
        certifier = make_certifier(name, model, x[:1], "deterministic")
        certifier.prepare(1)
        eps = torch.full((4,), 0.05, dtype=torch.float64)
        certified = least_margins(certifier.stages, Batch(x, rows, eps, margin=torch.ones_like(eps)))
        torch.testing.assert_close(there.amin(1), certified)
        torch.testing.assert_close(compared.amin(1), certified)


def test_the_training_bound_of_a_name_is_the_certified_one():
    """In training the same bound is estimated: with many iterations it comes to the certified constant (local ones,
    whose intervals are cheaper in training, to between that and the global one). Losses ask how far margins get from
    the sample, which is no more than between any two points."""
    torch.manual_seed(0)
    model, x = build_model("mlp-small", (1, 4, 4), 3, "relu").double().eval(), torch.rand(3, 1, 4, 4).double()
    y = model(x).argmax(1)
    from lirpa_lip.margin import margin_specification

    rows, others = margin_specification(y, 3, torch.float64), [[j for j in range(3) if j != k] for k in y.tolist()]

    def trained(name: str, **options) -> torch.Tensor:
        bound = make_bound(name, model, x[:1], **(options or {"iterations": 200}))
        pairs = bound.eval()(x, 0.1, y).pair_lipschitz.detach()
        return torch.stack([pairs[b, o] for b, o in enumerate(others)])

    def certified(name: str) -> torch.Tensor:
        return comparison.make_method(name, model, x).lipschitz(x, rows, 0.1).upper

    torch.testing.assert_close(trained("global-product"), certified("global-product"), rtol=2e-2, atol=0)
    from_the_sample = trained("local-product", certificate="deterministic")
    assert (from_the_sample <= certified("local-product") * (1 + 1e-6)).all()
    assert (trained("local-product") >= from_the_sample * 0.97).all()
    assert (trained("local-product") <= certified("global-product") * (1 + 1e-6)).all()
    assert (trained("local-lip") <= trained("local-product") * (1 + 1e-6)).all()
