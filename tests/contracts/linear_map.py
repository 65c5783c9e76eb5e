"""The contract every linear map keeps: a test class inherits it and supplies `make` and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lirpa_lip.norms.linear_map import LinearMap, MaskedMap


def explicit(linear_map: LinearMap) -> Tensor:
    """The matrix, by applying the map to unit vectors one at a time; ``(B or 1, out, in)``."""
    columns = []
    batch = linear_map.batch_size or 1
    for j in range(linear_map.in_numel):
        e = torch.zeros(batch, linear_map.in_numel, dtype=linear_map.dtype)
        e[:, j] = 1
        columns.append(linear_map.forward(e.reshape(batch, *linear_map.in_shape)).flatten(1))
    return torch.stack(columns, 2)


class MapContract:
    """Inherit, and define ``make(dtype) -> LinearMap``; every tensor of the map may require a gradient."""

    has_abs = True
    has_square = True

    def make(self, dtype: torch.dtype) -> LinearMap:
        raise NotImplementedError

    @pytest.fixture
    def linear_map(self) -> LinearMap:
        torch.manual_seed(0)
        return self.make(torch.float64)

    def batch(self, linear_map: LinearMap) -> int:
        return linear_map.batch_size or 3

    def test_shapes_and_dtype(self, linear_map: LinearMap) -> None:
        b = self.batch(linear_map)
        x = torch.randn(b, *linear_map.in_shape, dtype=torch.float64)
        assert linear_map.forward(x).shape == (b, *linear_map.out_shape)
        y = torch.randn(b, *linear_map.out_shape, dtype=torch.float64)
        assert linear_map.adjoint(y).shape == (b, *linear_map.in_shape)
        assert linear_map.dtype == torch.float64
        assert linear_map.to(torch.float32).dtype == torch.float32
        assert linear_map.to(torch.float32).forward(x.float()).dtype == torch.float32

    def test_adjoint_is_the_transpose(self, linear_map: LinearMap) -> None:
        b = self.batch(linear_map)
        x = torch.randn(b, *linear_map.in_shape, dtype=torch.float64)
        y = torch.randn(b, *linear_map.out_shape, dtype=torch.float64)
        there = (linear_map.forward(x) * y).flatten(1).sum(1)
        back = (linear_map.adjoint(y) * x).flatten(1).sum(1)
        torch.testing.assert_close(there, back)

    def test_dense(self, linear_map: LinearMap) -> None:
        expected = explicit(linear_map)
        dense = linear_map.dense()
        assert dense.ndim == (2 if linear_map.batch_size is None else 3)
        torch.testing.assert_close(dense, expected if linear_map.batch_size else expected[0])

    def test_entries(self, linear_map: LinearMap) -> None:
        one = linear_map.select(torch.tensor([linear_map.batch_size - 1])) if linear_map.batch_size else linear_map
        matrix = explicit(one)[0]
        rows = torch.randperm(linear_map.out_numel)[: linear_map.out_numel // 2 + 1]
        columns = torch.randperm(linear_map.in_numel)[: linear_map.in_numel // 3 + 1]
        torch.testing.assert_close(one.entries(rows, columns), matrix[rows][:, columns])
        torch.testing.assert_close(one.entries(columns.new_zeros(0), columns), matrix[:0, columns])

    def test_select_takes_repeats(self, linear_map: LinearMap) -> None:
        index = torch.tensor([1, 0, 1])
        x = torch.randn(3, *linear_map.in_shape, dtype=torch.float64)
        matrix = explicit(linear_map)
        matrix = matrix[index] if linear_map.batch_size else matrix
        found = linear_map.select(index).forward(x).flatten(1)
        torch.testing.assert_close(found, (matrix @ x.flatten(1).unsqueeze(2)).squeeze(2))

    def test_abs_and_square(self, linear_map: LinearMap) -> None:
        matrix = explicit(linear_map)
        for has, name, expected in ((self.has_abs, "abs", matrix.abs()), (self.has_square, "square", matrix.square())):
            if has:
                torch.testing.assert_close(explicit(getattr(linear_map, name)()), expected)
            else:
                with pytest.raises(NotImplementedError):
                    getattr(linear_map, name)()

    def test_row_norms(self, linear_map: LinearMap) -> None:
        matrix = explicit(linear_map)
        scale = torch.rand(self.batch(linear_map), *linear_map.in_shape, dtype=torch.float64)
        expected = (matrix * scale.flatten(1).unsqueeze(1)).norm(dim=2)
        torch.testing.assert_close(linear_map.row_norms(scale).flatten(1), expected)
        torch.testing.assert_close(linear_map.row_norms().flatten(1), matrix.norm(dim=2))

    def test_row_norms_have_a_gradient_at_zero(self, linear_map: LinearMap) -> None:
        scale = torch.zeros(self.batch(linear_map), *linear_map.in_shape, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(linear_map.row_norms(scale).sum(), scale)
        assert gradient.isfinite().all()

    def test_gradients_of_input_and_tensors(self, linear_map: LinearMap) -> None:
        tensors = [tensor.detach().clone().requires_grad_() for tensor in linear_map.tensors()]
        b = self.batch(linear_map)
        x = torch.randn(b, *linear_map.in_shape, dtype=torch.float64, requires_grad=True)
        y = torch.randn(b, *linear_map.out_shape, dtype=torch.float64, requires_grad=True)

        def apply(x: Tensor, y: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
            queue = iter(tensors)
            rebuilt = linear_map.rebuild(lambda _: next(queue), lambda _: next(queue))
            return rebuilt.forward(x), rebuilt.adjoint(y)

        assert torch.autograd.gradcheck(apply, (x, y, *tensors))

    def test_detach(self, linear_map: LinearMap) -> None:
        attached = linear_map.rebuild(lambda t: t.requires_grad_(), lambda t: t.requires_grad_())
        assert not any(tensor.requires_grad for tensor in attached.detach().tensors())

    def test_masked(self, linear_map: LinearMap) -> None:
        b = self.batch(linear_map)
        mask_in = torch.rand(b, *linear_map.in_shape, dtype=torch.float64)
        mask_out = torch.rand(b, *linear_map.out_shape, dtype=torch.float64)
        masked = MaskedMap(linear_map, mask_in, mask_out)
        matrix = explicit(linear_map) * mask_in.flatten(1).unsqueeze(1) * mask_out.flatten(1).unsqueeze(2)
        torch.testing.assert_close(explicit(masked), matrix)
        torch.testing.assert_close(explicit(masked.select(torch.tensor([2]))), matrix[2:3])
        torch.testing.assert_close(explicit(masked.to(torch.float32)).double(), matrix, atol=1e-4, rtol=1e-4)
        if self.has_square:
            torch.testing.assert_close(explicit(masked.square()), matrix.square())
