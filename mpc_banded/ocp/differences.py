# SPDX-License-Identifier: Apache-2.0
"""Compares first and second derivatives by autograd with finite differences.

Autograd cannot tell that a derivative is wrong: a detached tensor, a function that leaves the
graph and a custom backward without a second derivative give zeros silently. Differences reveal
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

#: Returns values (m,) at a distance () along some direction.
Curve = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Steps:
    """Steps of the differences, and the errors that they may have.

    Attributes:
        usual: Steps of the central differences that are tried first.
        ladder: Steps to try where none of the usual ones agrees.
        relative: Relative error allowed.
        absolute: Error allowed, relative to 1 + the value.
    """

    usual: tuple[float, ...]
    ladder: tuple[float, ...]
    relative: float
    absolute: float


_STEPS = {
    torch.float64: _Steps((1e-3, 1e-5), tuple(10.0**-k for k in range(2, 10)), 1e-3, 1e-6),
    torch.float32: _Steps((1e-1, 1e-2), tuple(10.0**-k for k in range(1, 5)), 3e-2, 1e-3),
}


class WrongDerivative(ValueError):
    """A derivative by autograd is not that of its function; the message names the function."""


def check_derivatives(
    names: Sequence[str], curve: Curve, dtype: torch.dtype = torch.float64
) -> None:
    """Compare the derivatives of a curve at 0 with differences.

    Second derivatives are compared as a sum first, and one by one only if the sum is wrong,
    because each comparison takes several backward passes.

    Args:
        names: Name of each of the m values.
        curve: Values along a random direction.
        dtype: dtype of the values, float32 or float64.

    Raises:
        WrongDerivative: A first derivative is not that of the values, or a second one is not that
            of the first.
    """
    with torch.inference_mode(False), torch.enable_grad():
        slopes, sizes = _check_first(names, curve, dtype)
        # All terms get about the same size, so that no large one hides a small one.
        weights = torch.as_tensor(1.0 / (1e-9 + sizes + np.abs(slopes)), dtype=dtype)
        if _second(curve, weights, dtype) is None:
            return
        for name, weight in zip(names, torch.diag(torch.ones_like(weights)), strict=True):
            wrong = _second(curve, weight, dtype)
            if wrong is not None:
                raise WrongDerivative(
                    f"the second derivative of {name} is not that of its gradient: "
                    f"{wrong.claimed:.4g} along a random direction, {wrong.found:.4g} by "
                    "differences; look for once_differentiable, or detach inside a backward"
                )


def check_function(f: Callable[[Tensor], Tensor], z: Tensor) -> None:
    """Compare the derivatives of a scalar function at z (n,), along a random direction.

    Raises:
        WrongDerivative: See check_derivatives.
    """
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode(False):
        here = z.detach()
        direction = torch.randn(z.shape, generator=generator, dtype=torch.float64).to(here)
        check_derivatives(["f"], lambda step: f(here + step * direction)[None], z.dtype)


def _check_first(
    names: Sequence[str], curve: Curve, dtype: torch.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first derivatives, and the sizes of the values, (m,) each."""

    def values(step: float) -> np.ndarray:
        with torch.no_grad():
            return _array(curve(torch.tensor(step, dtype=dtype)))

    at = torch.zeros((), dtype=dtype, requires_grad=True)
    here = curve(at)
    claimed = _array(torch.stack([_slope(value, at) for value in here]))
    wrong = _disagreement(values, _array(here), claimed, _STEPS[dtype])
    if wrong is not None:
        raise WrongDerivative(
            f"the gradient of {names[wrong.index]} is not that of its values: {wrong.claimed:.4g} "
            f"along a random direction, {wrong.found:.4g} by differences; look for detach, item, "
            "numpy or no_grad inside the function"
        )
    return claimed, np.abs(_array(here))


def _second(curve: Curve, weights: Tensor, dtype: torch.dtype) -> _Disagreement | None:
    """Compare the second derivative of a weighted sum (m,) of the values."""

    def first(step: Tensor) -> Tensor:
        return _slope((weights * curve(step).to(weights)).sum(), step)

    def moved(step: float) -> np.ndarray:
        return _array(first(torch.tensor(step, dtype=dtype, requires_grad=True))[None])

    at = torch.zeros((), dtype=dtype, requires_grad=True)
    slope = first(at)
    claimed = _slope(slope, at)
    return _disagreement(moved, _array(slope[None]), _array(claimed[None]), _STEPS[dtype])


def _slope(value: Tensor, step: Tensor) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(step)
    (slope,) = torch.autograd.grad(
        value, step, create_graph=True, allow_unused=True, materialize_grads=True
    )
    return slope


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().astype(float)


@dataclass(frozen=True)
class _Disagreement:
    """A wrong derivative: its index, its value by autograd, and its value by differences."""

    index: int
    claimed: float
    found: float


# Values that are not finite are not judged here.
@np.errstate(over="ignore", invalid="ignore")
def _disagreement(
    values: Callable[[float], np.ndarray], here: np.ndarray, claimed: np.ndarray, steps: _Steps
) -> _Disagreement | None:
    """Return the first derivative that differences contradict.

    Args:
        values: Values (m,) at a step.
        here: Values at 0, (m,).
        claimed: Their derivatives at 0 by autograd, (m,).
        steps: Steps to try.
    """
    floor = steps.absolute * (1.0 + np.abs(here))

    def exceeds(error: np.ndarray, found: np.ndarray) -> np.ndarray:
        result: np.ndarray = ~(error <= steps.relative * (np.abs(claimed) + np.abs(found)) + floor)
        return result

    # The smallest error counts, because a step may cross a kink or be lost in rounding.
    doubt = np.ones(here.shape, dtype=bool)
    for h in steps.usual:
        found = (values(h) - values(-h)) / (2.0 * h)
        doubt &= exceeds(np.abs(claimed - found), found)
    if not doubt.any():
        return None
    # A stiff function bends within the usual steps. The best step is the one whose differences to
    # both sides, and that of the step before, are closest. At a kink the two sides never agree,
    # and any slope between them is right.
    spread, low, high = (np.full(here.shape, np.inf) for _ in range(3))
    last = np.full(here.shape, np.inf)
    for h in steps.ladder:
        ahead, behind = (values(h) - here) / h, (here - values(-h)) / h
        apart = np.maximum(np.abs(ahead - behind), np.abs(0.5 * (ahead + behind) - last))
        closer = apart < spread
        spread[closer] = apart[closer]
        low[closer] = np.minimum(ahead, behind)[closer]
        high[closer] = np.maximum(ahead, behind)[closer]
        last = 0.5 * (ahead + behind)
    judged = np.isfinite(spread) & np.isfinite(claimed)
    low, high, spread = (np.where(judged, each, 0.0) for each in (low, high, spread))
    found = 0.5 * (low + high)
    beyond = np.maximum(low - claimed, claimed - high) - 2.0 * spread
    wrong = np.flatnonzero(doubt & judged & exceeds(beyond, found))
    if not wrong.size:
        return None
    i = int(wrong[0])
    return _Disagreement(i, float(claimed[i]), float(found[i]))
