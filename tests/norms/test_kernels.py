"""Every kernel against the eager reference: on CUDA where there is one, else in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from networks.maps import BUILDERS, masks
from torch import Tensor

from lirpa_lip.errors import MissingDependencyError, UnknownMethodError
from lirpa_lip.norms import masked_spectral_norm
from lirpa_lip.norms.kernels import autograd, backend, reference, registry, use_backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

CPU = torch.device("cpu")

# Beside twice the eager error, relative to the largest value. (To bfloat16 the interpreter truncates; devices round.)
ALLOWANCE = {torch.float32: 2e-6, torch.float64: 1e-14, torch.bfloat16: 2e-3 if DEVICE == "cuda" else 2**-7}


@pytest.fixture
def triton():
    pytest.importorskip("triton")
    from lirpa_lip.norms.kernels import triton

    return triton


def step_arguments(size: int, n: int, dtype: torch.dtype, masked: bool) -> tuple[Tensor | None, ...]:
    def unit(*shape: int) -> Tensor:
        tensor = torch.randn(*shape, device=DEVICE, dtype=torch.float64)
        return (tensor / tensor.norm(dim=1, keepdim=True)).to(dtype)

    mask = (torch.rand(size, n, device=DEVICE) > 0.4).to(dtype) if masked else None
    scale, beta = (torch.rand(size, device=DEVICE).to(dtype) + 0.5 for _ in range(2))
    return unit(size, n), mask, scale, unit(size, n), unit(size, n), beta


def within_budget(found: Tensor, eager: Tensor, exact: Tensor, dtype: torch.dtype) -> bool:
    """At most twice the error of eager code in the same precision, and a little."""
    error, allowed = (found.double() - exact).abs().max(), (eager.double() - exact).abs().max()
    return bool(error <= 2 * allowed + ALLOWANCE[dtype] * exact.abs().max())


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("size", "n"), [(1, 1), (3, 5), (5, 2048), (2, 2049), (3, 4097)])
def test_lanczos_step(triton, size: int, n: int, dtype: torch.dtype, masked: bool) -> None:
    arguments = step_arguments(size, n, dtype, masked)
    exact = reference.lanczos_step(*(None if a is None else a.double() for a in arguments))
    eager, found = reference.lanczos_step(*arguments), triton.lanczos_step(*arguments)
    for mine, theirs, truth in zip(found, eager, exact, strict=True):
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape
        assert within_budget(mine, theirs, truth, dtype)


def test_lanczos_step_of_zeros_is_zero(triton) -> None:
    for step in (reference.lanczos_step, triton.lanczos_step):
        zeros, ones = torch.zeros(2, 7, device=DEVICE), torch.ones(2, device=DEVICE)
        v_next, alpha, beta = step(zeros, None, ones, zeros, zeros, ones)
        assert not v_next.any() and not alpha.any() and not beta.any()


def test_reference_step_is_the_recurrence() -> None:
    z, mask, scale, v, v_prev, beta_prev = (a.double() for a in step_arguments(4, 9, torch.float64, True))
    v_next, alpha, beta = reference.lanczos_step(z, mask, scale, v, v_prev, beta_prev)
    for b in range(4):
        y = scale[b] * mask[b] * z[b]
        w = y - (v[b] @ y) * v[b] - beta_prev[b] * v_prev[b]
        torch.testing.assert_close(alpha[b], v[b] @ y)
        torch.testing.assert_close(beta[b], w.norm())
        torch.testing.assert_close(v_next[b], w / w.norm())


def product_arguments(size: int, n_in: int, n_out: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Masks with whole tiles empty, on either side and for all samples or some."""
    x, weight = torch.randn(size, n_in, device=DEVICE).to(dtype), torch.randn(n_out, n_in, device=DEVICE).to(dtype)
    mask_in, mask_out = (torch.rand(size, n, device=DEVICE) > 0.5 for n in (n_in, n_out))
    mask_in[:, n_in // 3 : 2 * n_in // 3] = False
    mask_out[: size // 2 + 1, n_out // 2 :] = False
    return x, weight, mask_in.to(dtype), mask_out.to(dtype) * 0.7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("size", "n_in", "n_out"), [(1, 1, 1), (3, 70, 33), (17, 200, 65), (32, 384, 128)])
def test_masked_matmul(triton, size: int, n_in: int, n_out: int, dtype: torch.dtype) -> None:
    x, weight, mask_in, mask_out = product_arguments(size, n_in, n_out, dtype)
    for chosen in ((mask_in, mask_out), (mask_in, None), (None, mask_out), (None, None)):
        arguments = (x, weight, *chosen)
        exact = reference.masked_matmul(*(None if a is None else a.double() for a in arguments))
        eager, found = reference.masked_matmul(*arguments), triton.masked_matmul(*arguments)
        assert found.dtype == dtype
        assert within_budget(found, eager, exact, dtype)
    transposed = triton.masked_matmul(mask_out.float(), weight.float().mT, None, None)
    torch.testing.assert_close(transposed, mask_out.float() @ weight.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["reference", "triton"])
def test_the_product_is_differentiable(name: str) -> None:
    if name == "triton":
        pytest.importorskip("triton")
    arguments = [a.double().requires_grad_() for a in product_arguments(3, 6, 5, torch.float64)]
    with use_backend(name):
        assert torch.autograd.gradcheck(autograd.masked_matmul, arguments)
        for wanted in range(4):
            single = [a.detach().requires_grad_(i == wanted) for i, a in enumerate(arguments)]
            assert torch.autograd.gradcheck(autograd.masked_matmul, single)


@pytest.mark.parametrize("name", ["wide", "conv", "strided", "composed"])
def test_solvers_give_the_same_on_either(triton, name: str) -> None:
    torch.manual_seed(0)
    linear_map = BUILDERS[name](torch.float32).to(device=DEVICE)
    mask_in, mask_out = (mask.to(DEVICE) for mask in masks(linear_map.to(device="cpu"), 0.4, True))
    for certificate in ("estimate", "probabilistic"):
        found = []
        for kernels in ("reference", "triton"):
            generator = torch.Generator(DEVICE).manual_seed(0)
            options = {"certificate": certificate, "rtol": 1e-4, "max_iterations": 20, "generator": generator}
            with use_backend(kernels):
                found.append(masked_spectral_norm(linear_map, mask_in, mask_out, **options).upper)
        torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


def test_choice_of_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIRPA_LIP_KERNELS", raising=False)
    assert backend(CPU) is reference
    monkeypatch.setenv("LIRPA_LIP_KERNELS", "reference")
    assert backend(torch.device("cuda")) is reference
    monkeypatch.setenv("LIRPA_LIP_KERNELS", "fast")
    with pytest.raises(UnknownMethodError, match="reference"):
        backend(CPU)
    with use_backend("reference"):
        assert backend(CPU) is reference
    with pytest.raises(UnknownMethodError), use_backend("fast"):
        pass


def test_triton_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Triton everything runs on the reference, and asking for Triton by name says how to get it."""
    monkeypatch.delenv("LIRPA_LIP_KERNELS", raising=False)
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: None)
    assert backend(torch.device("cuda")) is reference
    with use_backend("triton"), pytest.raises(MissingDependencyError, match="pip install triton"):
        backend(CPU)


def test_importing_the_package_does_not_need_triton() -> None:
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['triton'] = None; import lirpa_lip.norms; assert 'triton.language' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.cuda
def test_kernels_on_cuda_are_compiled(triton) -> None:
    """On a device the step runs compiled, and through the automatic choice."""
    assert backend(torch.device("cuda")) is triton
    arguments = step_arguments(64, 6272, torch.float32, True)
    for mine, theirs in zip(triton.lanczos_step(*arguments), reference.lanczos_step(*arguments), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_noise_is_not_a_direction(triton, dtype: torch.dtype) -> None:
    """Where ``y = alpha v + beta_prev v_prev`` but for rounding, the recurrence ends; where it is more, it goes on."""
    _, _, scale, v, v_prev, beta = step_arguments(3, 400, dtype, False)
    v_prev = v_prev - (v_prev * v).sum(1, keepdim=True) * v
    v_prev = v_prev / v_prev.norm(dim=1, keepdim=True)
    z = (2 * v + beta.unsqueeze(1) * v_prev) / scale.unsqueeze(1)
    z[2] += 1e-3 * torch.randn_like(z[2])
    for step in (reference.lanczos_step, triton.lanczos_step):
        v_next, _, found = step(z, None, scale, v, v_prev, beta)
        assert not found[:2].any() and not v_next[:2].any()
        assert found[2] > 0 and abs(v_next[2].norm() - 1) < 1e-4
