# SPDX-License-Identifier: Apache-2.0
"""Cost and accuracy of every recovery of a band from its products with probes.

The Hessian of the function under study is known in closed form: every variable is coupled with its
``b`` neighbours by the sine of their product. The closed form is evaluated in extended precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import plots
from benchmarks.hessian_study.problems import verdict
from benchmarks.pages import number, table
from benchmarks.timing import interleaved
from mpc_banded.ocp.comb import RECOVERIES, Comb, hessian_vector_products

#: The half bandwidth of the bicycle: nu + 2 nx - 1.
HALF_BANDWIDTH = 9
HEAVY = 1e6
#: Largest error in eps at which a recovery counts as exact.
EXACT = 16.0
GRADINGS = ("level", "heavy end", "heavy ends")
#: Entries of all least-squares systems of the random recovery; with more it takes minutes.
LARGEST_RANDOM = 1e8


def weights(n: int, grading: str) -> np.ndarray:
    """Weight of each variable (n,): 1, and HEAVY in the last tenth or in both end tenths."""
    weight = np.ones(n)
    tenth = max(1, n // 10)
    if grading != "level":
        weight[-tenth:] = HEAVY
    if grading == "heavy ends":
        weight[:tenth] = HEAVY
    return weight


def pair_scales(weight: np.ndarray, half_bandwidth: int) -> np.ndarray:
    """sqrt(w_i w_j) in lower band storage (b + 1, n), zero in the corner: the size of an entry."""
    n = len(weight)
    scales = np.zeros((half_bandwidth + 1, n))
    for d in range(min(half_bandwidth + 1, n)):
        scales[d, : n - d] = np.sqrt(weight[d:] * weight[: n - d])
    return scales


def neighbours(scales: np.ndarray, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """f(z) = sum_i s_ii z_i^4 / 12 + sum_{i<j<=i+b} s_ij sin(z_i z_j), a function of (n,)."""
    rows = torch.tensor(scales, dtype=dtype)

    def f(z: Tensor) -> Tensor:
        value = (rows[0] * z**4).sum() / 12
        for d in range(1, min(len(rows), len(z))):
            value = value + (rows[d, : len(z) - d] * torch.sin(z[d:] * z[:-d])).sum()
        return value

    return f


def exact_bands(scales: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The Hessian of ``neighbours`` at ``z`` (n,) by its closed form, in extended precision.

    Returns:
        Lower bands (b + 1, n), and the sum of the sizes of all terms of each entry: rounding
        errors are measured by it, since a light diagonal beside a heavy one has heavy terms.
    """
    s, z = scales.astype(np.longdouble), z.astype(np.longdouble)
    bands, sizes = np.zeros_like(s), np.zeros_like(s)
    bands[0] = sizes[0] = s[0] * z * z
    for d in range(1, min(len(s), len(z))):
        lower, upper, w = z[:-d], z[d:], s[d, : len(z) - d]
        product = lower * upper
        sine, cosine = np.sin(product), np.cos(product)
        bands[d, : len(z) - d] = w * (cosine - product * sine)
        sizes[d, : len(z) - d] = w * (np.abs(cosine) + np.abs(product * sine))
        for part, term in ((slice(None, -d), upper), (slice(d, None), lower)):
            bands[0, part] -= w * term * term * sine
            sizes[0, part] += w * term * term * np.abs(sine)
    return bands, sizes


class Subject:
    """One function at one point.

    Args:
        n: Number of variables.
        half_bandwidth: Half bandwidth of its Hessian.
        grading: One of GRADINGS.
        dtype: Type of all arithmetic in torch.
    """

    def __init__(
        self,
        n: int,
        half_bandwidth: int,
        grading: str = "level",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.scales = pair_scales(weights(n, grading), half_bandwidth)
        generator = torch.Generator().manual_seed(0)
        size, sign = torch.rand(2, n, generator=generator, dtype=torch.float64)
        self.z = (torch.sign(sign - 0.5) * (0.5 + 0.5 * size)).to(dtype)
        # The closed form must have the weights as float32 rounds them.
        self.scales = self.scales.astype(str(dtype).removeprefix("torch.")).astype(float)
        self.f = neighbours(self.scales, dtype)
        self.half_bandwidth = half_bandwidth

    def gradient(self) -> tuple[Tensor, Tensor]:
        """Gradient with its graph, and the point that the graph starts from."""
        point = self.z.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.f(point), point, create_graph=True)
        return gradient, point

    def comb(self, recovery: str) -> Comb:
        """Probes and their decompression; made once for many Hessians."""
        return Comb(len(self.z), self.half_bandwidth, recovery, self.z.dtype)

    def recover(self, comb: Comb) -> np.ndarray:
        """The bands (b + 1, n), by products with the probes."""
        gradient, point = self.gradient()
        return comb.decompress(hessian_vector_products(gradient, point, comb.probes))

    def error(self, bands: np.ndarray) -> float:
        """Largest error of an entry, in eps of the sum of the sizes of its terms."""
        exact, sizes = exact_bands(self.scales, self.z.numpy())
        inside = self.scales > 0
        error = np.abs(bands - exact)[inside] / sizes[inside]
        return float(error.max() / np.finfo(bands.dtype).eps)


@dataclass(frozen=True)
class Cost:
    """Probes, and medians in seconds: of one gradient, of the products, of the decompression."""

    probes: int
    gradient_s: float
    products_s: float
    decompress_s: float

    @property
    def total_s(self) -> float:
        """Seconds of one Hessian."""
        return self.products_s + self.decompress_s

    @property
    def gradients(self) -> float:
        """The same in gradients of the function, a unit that does not depend on the machine."""
        return self.total_s / self.gradient_s


@dataclass(frozen=True)
class Figures:
    """Costs by (recovery, n, b, dtype) and errors by (recovery, n, b, dtype, grading)."""

    by_bandwidth: tuple[int, ...]
    by_size: tuple[int, ...]
    middle: int
    costs: dict[tuple[str, int, int, str], Cost]
    errors: dict[tuple[str, int, int, str, str], float]


def measure(quick: bool) -> Figures:
    """Run all recoveries over bandwidths at one size, and over sizes at one bandwidth."""
    bandwidths = (1, 2, 4, 9) if quick else (1, 2, 4, 9, 16, 32)
    sizes = (100, 300) if quick else (100, 1_000, 10_000, 100_000)
    middle = 100 if quick else 1_000
    shapes = [(middle, b) for b in bandwidths] + [(n, HALF_BANDWIDTH) for n in sizes]
    costs: dict[tuple[str, int, int, str], Cost] = {}
    errors: dict[tuple[str, int, int, str, str], float] = {}
    for n, b in dict.fromkeys(shapes):
        for dtype in (torch.float64, torch.float32):
            name = str(dtype).removeprefix("torch.")
            names = [
                r for r in RECOVERIES if r != "random" or n * (2 * b + 1) ** 2 < LARGEST_RANDOM
            ]
            level = Subject(n, b, dtype=dtype)
            found = _costs(level, names, 0.0 if quick else 0.5)
            costs.update({(r, n, b, name): cost for r, cost in found.items()})
            for grading in GRADINGS:
                subject = Subject(n, b, grading, dtype)
                for r in names:
                    errors[r, n, b, name, grading] = subject.error(
                        subject.recover(subject.comb(r))
                    )
    return Figures(bandwidths, sizes, middle, costs, errors)


def _costs(subject: Subject, recoveries: Sequence[str], seconds: float) -> dict[str, Cost]:
    candidates: dict[str, Callable[[], object]] = {"gradient": subject.gradient}
    combs = {recovery: subject.comb(recovery) for recovery in recoveries}
    for recovery, comb in combs.items():
        gradient, point = subject.gradient()
        products = hessian_vector_products(gradient, point, comb.probes)
        candidates[f"{recovery} products"] = lambda g=gradient, z=point, c=comb: (
            hessian_vector_products(g, z, c.probes)
        )
        candidates[f"{recovery} decompress"] = lambda c=comb, p=products: c.decompress(p)
    times = interleaved(candidates, seconds)
    return {
        recovery: Cost(
            len(comb.probes),
            times["gradient"],
            times[f"{recovery} products"],
            times[f"{recovery} decompress"],
        )
        for recovery, comb in combs.items()
    }


def values(figures: Figures) -> dict[str, str]:
    """Everything that the page has a place for."""
    b, n, largest, middle = (
        HALF_BANDWIDTH,
        figures.by_size[-2],
        figures.by_size[-1],
        figures.middle,
    )
    costs = {r: figures.costs[r, n, b, "float64"] for r in RECOVERIES}
    worst = {r: _worst(figures, r, "float64") for r in RECOVERIES}
    direct = costs["direct"]
    single, double = (
        {m: figures.costs["direct", m, b, t].total_s for m in (middle, largest)}
        for t in ("float32", "float64")
    )
    cost_rows = [
        [r, c.probes, 1e3 * c.products_s, 1e3 * c.decompress_s, c.total_s / direct.total_s]
        for r, c in costs.items()
    ]
    error_rows = [
        [
            r,
            *(figures.errors[r, n, b, "float64", g] for g in GRADINGS),
            figures.errors[r, n, b, "float32", "level"],
        ]
        for r in RECOVERIES
    ]
    found = {
        "n": number(n),
        "middle": number(middle),
        "largest": number(largest),
        "costs": table(
            ["recovery", "probes", "products, ms", "decompression, ms", "of direct"], cost_rows
        ),
        "errors": table(["recovery", *GRADINGS, "level, float32"], error_rows),
        "direct.gradients": number(direct.gradients),
        "direct.middle_gradients": number(figures.costs["direct", middle, b, "float64"].gradients),
        "direct.verdict": verdict(worst["direct"] <= EXACT),
        "substitution.verdict": verdict(costs["substitution"].probes <= direct.probes // 2 + 1),
        "substitution.level_error": number(_worst(figures, "substitution", "float64", ("level",))),
        "substitution.digits": number(
            float(np.log10(figures.errors["substitution", n, b, "float64", "heavy ends"]))
        ),
        "float32.largest_time": number(single[largest] / double[largest]),
        "float32.middle_time": number(single[middle] / double[middle]),
        "float32.error": number(_worst(figures, "direct", "float32")),
    }
    for r in RECOVERIES:
        found[f"{r}.probes"] = str(costs[r].probes)
        if r != "direct":
            found[f"{r}.time"] = number(costs[r].total_s / direct.total_s)
        found[f"{r}.error"] = number(worst[r])
    for r in ("direct", "substitution"):
        cost = figures.costs[r, largest, b, "float64"]
        found[f"{r}.largest_gradients"] = number(cost.gradients)
    for r in ("phase", "random"):  # both were to save probes
        found[f"{r}.verdict"] = verdict(costs[r].probes < direct.probes)
    return found


def _worst(
    figures: Figures, recovery: str, dtype: str, gradings: Sequence[str] = GRADINGS
) -> float:
    return max(
        error
        for (r, _, _, t, g), error in figures.errors.items()
        if (r, t) == (recovery, dtype) and g in gradings
    )


def plot(figures: Figures, images: Path) -> None:
    """Costs against half bandwidth and size, errors against size and by grading."""
    n, b = figures.middle, HALF_BANDWIDTH
    with plots.axes(images, "hessian_recovery_costs", 2) as (left, right):
        for k, r in enumerate(RECOVERIES):
            cost = [figures.costs[r, n, w, "float64"].gradients for w in figures.by_bandwidth]
            plots.line(left, k, figures.by_bandwidth, cost, r)
            cost = [figures.costs[r, m, b, "float64"].gradients for m in figures.by_size]
            plots.line(right, k, figures.by_size, cost, r)
        left.set(xscale="log", yscale="log", xlabel="half bandwidth b", ylabel="gradients")
        left.set_title(f"Cost of one Hessian, n = {number(n)}")
        right.set(xscale="log", yscale="log", xlabel="number of variables n", title=f"b = {b}")
        left.legend()
    n = figures.by_size[-2]
    with plots.axes(images, "hessian_recovery_errors", 2) as (left, right):
        for k, r in enumerate(RECOVERIES):
            errors = [figures.errors[r, m, b, "float64", "level"] for m in figures.by_size]
            plots.line(left, k, figures.by_size, errors, r)
            at = np.arange(len(GRADINGS)) + 0.2 * (k - 1.5)
            errors = [figures.errors[r, n, b, "float64", g] for g in GRADINGS]
            right.bar(at, errors, 0.18, color=plots.COLORS[k])
        left.set(xscale="log", yscale="log", xlabel="number of variables n", ylabel="eps")
        left.set_title(f"Largest error of an entry, level, b = {b}")
        left.legend()
        right.set(yscale="log", title=f"By grading, n = {number(n)}, float64")
        right.set_xticks(range(len(GRADINGS)), GRADINGS)
        right.grid(False, axis="x")
