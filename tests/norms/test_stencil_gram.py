"""The Gram operator of a grey image's convolution as a stencil: the same operator, on either side."""

from __future__ import annotations

import pytest
import torch
from networks.maps import singular_values

from lirpa_lip.norms import masked_spectral_norm
from lirpa_lip.norms.linear_map import Conv2dMap, ConvMap, DenseMap
from lirpa_lip.norms.problem import Problem, prepare
from lirpa_lip.norms.stencil_gram import StencilGram, stencil_pays

GREY = {
    "plain": lambda: Conv2dMap(torch.randn(7, 1, 3, 3), (1, 9, 8), padding=1),
    "stride": lambda: Conv2dMap(torch.randn(9, 1, 4, 3), (1, 9, 11), stride=(2, 1), padding=1),
    "dilation": lambda: Conv2dMap(torch.randn(5, 1, 3, 3), (1, 10, 9), dilation=2),
    "one_output": lambda: Conv2dMap(torch.randn(1, 6, 3, 3), (6, 8, 8), padding=1),
}


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", GREY)
def test_it_is_the_gram_operator(name: str, masked: bool) -> None:
    conv = GREY[name]().to(torch.float64)
    assert isinstance(conv, ConvMap)
    _, problem = prepare(conv, torch.rand(3, *conv.in_shape), torch.rand(3, *conv.out_shape))
    if not masked:
        problem = Problem(conv, 3)
    x = torch.randn(3, problem.numel, dtype=torch.float64)
    squares = problem.inner_square
    stencil = StencilGram(conv, problem.on_input, squares)
    outer = 1 if problem.outer is None else problem.outer
    torch.testing.assert_close(stencil.apply(x * outer), problem.gram_without_last_mask(x))
    part = stencil.select(torch.tensor([2, 0]))
    torch.testing.assert_close(part.apply((x * outer)[[2, 0]]), problem.gram_without_last_mask(x)[[2, 0]])


def test_solvers_take_it_where_it_pays() -> None:
    conv = Conv2dMap(torch.randn(32, 1, 3, 3), (1, 14, 13), padding=1)
    assert stencil_pays(conv, True) and not stencil_pays(conv.to(torch.float64), True)
    assert not stencil_pays(Conv2dMap(torch.randn(32, 3, 3, 3), (3, 14, 13)), True)
    assert not stencil_pays(DenseMap(torch.randn(3, 4)), True)
    mask_in, mask_out = ((torch.rand(6, *s) > torch.rand(6, 1, 1, 1)).float() for s in (conv.in_shape, conv.out_shape))
    _, problem = prepare(conv, mask_in, mask_out)
    assert problem.with_stencil().stencil is not None and problem.stencil is None
    options = {"certificate": "estimate", "rtol": 1e-6, "max_iterations": 150, "vectors": True}
    found = masked_spectral_norm(conv, mask_in, mask_out, **options).upper
    torch.testing.assert_close(found.double(), singular_values(conv, mask_in, mask_out), rtol=1e-5, atol=0)
