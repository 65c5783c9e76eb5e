"""States of branch and bound survive on disk exactly, and belong to one network."""

import copy
import math

import pytest
import torch
from torch import nn

from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm
from lirpa_lip.errors import CheckpointError, ConfigError
from lirpa_lip.search.file import load_states, save_states

CALL = dict(method="clarke-jacobian", norm=math.inf, time_limit=60, max_domains=6, batch=1)


@pytest.fixture(scope="module")
def stopped():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(0.1), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x = torch.rand(1, 4, dtype=torch.float64)
    return net, x, constant(net, x).details["state"]


def constant(net, x, **more):
    region = (BoundedTensor(x, PerturbationLpNorm(norm=math.inf, eps=0.5)),)
    return BoundedModule(net, x).local_lipschitz(region, **{**CALL, **more})


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return same(vars(a), vars(b)) if hasattr(a, "__dict__") else a == b and type(a) is type(b)


def test_a_state_comes_back_as_it_was(stopped, tmp_path):
    net, x, state = stopped
    assert len(state.waiting) > 2 and any(d.splits for d in state.waiting)
    save_states(tmp_path / "state", {(0, 0.5, "inf"): state, (1, 0.5, "inf"): copy.deepcopy(state)})
    back = load_states(tmp_path / "state")
    assert list(back) == [(0, 0.5, "inf"), (1, 0.5, "inf")] and all(same(found, state) for found in back.values())
    more = dict(max_domains=40)
    assert constant(net, x, resume=back[0, 0.5, "inf"], **more).upper == constant(net, x, resume=state, **more).upper


def test_damaged_and_foreign_files_are_refused(stopped, tmp_path):
    path = tmp_path / "state"
    save_states(path, {(0,): stopped[2]})
    content = path.read_bytes()
    for wrong in (content[:-1], content[:-9] + bytes([content[-9] ^ 1]) + content[-8:], b"", b"\x80\x04N."):
        path.write_bytes(wrong)
        with pytest.raises(CheckpointError, match="state"):
            load_states(path)


def with_negated_weight(net):
    net[0].weight.data.neg_()


def with_other_bias(net):
    net[2].bias.data[0] += 1


def with_other_slope(net):
    net[1].negative_slope = 0.2


def with_other_activation(net):
    net[3] = nn.LeakyReLU(0.3)


@pytest.mark.parametrize("change", [with_negated_weight, with_other_bias, with_other_slope, with_other_activation])
def test_a_state_is_not_taken_for_another_network(change, stopped):
    net, x, state = stopped
    other = copy.deepcopy(net)
    constant(other, x, resume=state)
    change(other)
    with pytest.raises(ConfigError, match="another network"):
        constant(other, x, resume=state)
