"""Linear layers on a CPU: PyTorch's operator of oneDNN is where it is looked for; numbers are F.linear's."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from klray.likelihood import linear as linears
from klray.likelihood.linear import linear


def operands(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(3, 17, 48, generator=generator).to(dtype),
        torch.randn(80, 48, generator=generator).to(dtype),
        torch.randn(80, generator=generator).to(dtype),
    )


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Dtypes of what went through oneDNN."""
    if not torch.backends.mkl.is_available():
        pytest.skip("this PyTorch has no MKL")
    found: list[torch.dtype] = []
    operator = linears._onednn()
    assert operator is not None, "PyTorch has no mkldnn._linear_pointwise any more: look for what took its place"

    def counted(values: torch.Tensor, *more: object) -> torch.Tensor:
        found.append(values.dtype)
        return operator(values, *more)

    monkeypatch.setattr(linears, "_onednn", lambda: counted)
    monkeypatch.setattr(linears, "_is_intel", lambda: False)
    return found


@torch.no_grad()
def test_products_are_those_of_a_float64_product(products: list[torch.dtype]) -> None:
    values, weight, bias = operands()
    for with_bias in (None, bias):
        exact = F.linear(values.double(), weight.double(), None if with_bias is None else bias.double())
        torch.testing.assert_close(linear(values, weight, with_bias).double(), exact, rtol=0, atol=2e-5)
        torch.testing.assert_close(
            linear(values[:, ::2], weight[8:40]).double(), F.linear(values[:, ::2].double(), weight[8:40].double()),
            rtol=0, atol=2e-5,
        )  # fmt: skip
    assert products == [torch.float32] * 4


@torch.no_grad()
def test_on_intel_s_own_products_are_pytorch_s(products: list[torch.dtype], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linears, "_is_intel", lambda: True)
    assert torch.equal(linear(*operands()), F.linear(*operands()))
    assert products == []


@torch.no_grad()
def test_a_weight_that_was_overwritten_counts_at_once(products: list[torch.dtype]) -> None:
    values, weight, _ = operands()
    first = linear(values, weight)
    weight.mul_(2)
    assert torch.equal(linear(values, weight), 2 * first)


def test_what_has_gradients_and_other_dtypes_are_pytorch_s_own(products: list[torch.dtype]) -> None:
    values, weight, bias = operands()
    layer = nn.Parameter(weight)
    linear(values, layer, bias).sum().backward()
    assert layer.grad is not None
    with torch.no_grad():
        for dtype in (torch.float64, torch.bfloat16):
            assert torch.equal(linear(*operands(dtype)), F.linear(*operands(dtype)))
        assert linear(values[:, :0], weight).shape == (3, 0, 80)
    assert products == []


@torch.no_grad()
@pytest.mark.parametrize("outputs", [80, linears._ROWS + 1])
def test_fp16_is_as_near_to_the_product_as_fp16_can_be(outputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    values, weight, bias = (
        torch.randn(*shape, generator=generator).half() for shape in ((3, 17, 48), (outputs, 48), (outputs,))
    )
    monkeypatch.setattr(linears, "_lacks_fp16", lambda: True)
    for given in (None, bias):
        exact = F.linear(values.double(), weight.double(), None if given is None else given.double())
        found = linear(values, weight, given)
        assert found.dtype == torch.float16 and found.shape == exact.shape
        own = F.linear(values, weight, given).double()
        assert (found.double() - exact).abs().max() <= 1.01 * (own - exact).abs().max()
        assert (found.double() != exact.half().double()).float().mean() < 0.01  # on the edge of two
