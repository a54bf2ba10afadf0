"""Tolerances: how far two results of the same mathematics may differ."""

from __future__ import annotations

from torch import Tensor


def assert_as_good(ours: Tensor, native: Tensor, exact: Tensor, name: str) -> None:
    """Our low-precision result is at most twice as far from the exact one as the native one is.

    A bound without a magic number: it scales with the dtype, the shape and the values. The rounding of the result
    itself is added, so that a native result that happens to be exact asks for nothing impossible.
    """
    exact = exact.double()
    rounding = (exact.to(ours.dtype).double() - exact).abs().max()
    error, bound = (ours.double() - exact).abs().max(), 2 * (native.double() - exact).abs().max() + rounding
    assert error <= bound, f"{name}: error {error:.3g}, native error gives a bound of {bound:.3g}"


def assert_equal_up_to_order(ours: Tensor, expected: Tensor) -> None:
    """The same float32 arithmetic summed in another order: within 5e-5 of the largest value.

    A sum carries 1e-7; the oracle's weights, scaled so that prompt and history matter, amplify that some hundred times.
    """
    scale = expected.abs().max()
    error = (ours - expected).abs().max()
    assert error <= 5e-5 * scale, f"off by {error:.3g} at values up to {scale:.3g}"
