"""What is bounded is what the model computes, for every form and attribute of an operator; or there is one error."""

from __future__ import annotations

import pytest
import torch
from networks.attributes import REFUSED, RIGHT, Case
from networks.rewritten import REFUSED_TOO
from sampling import ball_points
from torch import nn

from lirpa_lip import BoundedModule, BoundedTensor, PerturbationLpNorm
from lirpa_lip.errors import LirpaLipError, UnsupportedOperatorError
from lirpa_lip.local.bounds import network_graph

EPS = 0.1


def model_of(case: Case) -> nn.Module:
    torch.manual_seed(0)
    model = case.build().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def inputs(case: Case, batch: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(batch, *case.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("name", RIGHT)
def test_the_graph_computes_what_the_model_does(name):
    model = model_of(RIGHT[name])
    graph = network_graph(BoundedModule(model, inputs(RIGHT[name], 2)))
    for batch in (2, 1, 3):
        x = inputs(RIGHT[name], batch, seed=batch)
        with torch.no_grad():
            torch.testing.assert_close(graph.values(x)[graph.output], model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("batch", [2, 3])
def test_every_method_holds_it(name, batch):
    model = model_of(RIGHT[name])
    bounded = BoundedModule(model, inputs(RIGHT[name], 2))
    x = inputs(RIGHT[name], batch)
    with torch.no_grad():
        values = torch.stack([model(p) for p in (x, *ball_points(x, EPS, 20))]).flatten(2)
    slack = 1e-5 * (1 + values.abs().amax(0))
    for method in ("ibp", "crown", "local-lip", "local-lip-crown"):
        region = (BoundedTensor(x, PerturbationLpNorm(norm=2, eps=EPS)),)
        try:
            lower, upper = (t.flatten(1) for t in bounded.compute_bounds(x=region, method=method))
        except UnsupportedOperatorError as error:  # a rule auto_LiRPA lacks, and says so
            assert method in ("ibp", "crown", "local-lip-crown") and "local-lip" in str(error)
            continue
        assert (lower <= values.amin(0) + slack).all() and (upper >= values.amax(0) - slack).all(), method


@pytest.mark.parametrize("name", [*REFUSED, *REFUSED_TOO])
def test_refused_with_node_and_reason(name):
    case, word = {**REFUSED, **REFUSED_TOO}[name]
    with pytest.raises(LirpaLipError) as error:
        network_graph(BoundedModule(model_of(case), inputs(case, 2)))
    message = str(error.value)
    assert word in message, message
    if isinstance(error.value, UnsupportedOperatorError):
        assert error.value.node and error.value.operator not in ("", "?")
