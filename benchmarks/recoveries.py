# SPDX-License-Identifier: Apache-2.0
"""Cost and accuracy of every recovery of a band from its products with probes.

The function under study is one whose Hessian is known in closed form: every variable meets its
``b`` neighbours in a product under a sine. The closed form is evaluated in extended precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import study
from benchmarks.study import Chapter, Verdict, number
from mpc_banded.ocp.comb import RECOVERIES, Comb, hessian_vector_products

#: The half bandwidth of the bicycle: nu + 2 nx - 1.
HALF_BANDWIDTH = 9
HEAVY = 1e6
GRADINGS = ("level", "heavy end", "heavy ends")
#: Entries that a least-squares solve for each row may take in all; beyond, it takes minutes.
LARGEST_RANDOM = 1e8


def weights(n: int, grading: str) -> np.ndarray:
    """Weight of each variable (n,): one, but HEAVY in the last or the first and last tenth."""
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
    """One function at one point, ready to be probed.

    Args:
        n: Number of variables.
        half_bandwidth: Of its Hessian.
        grading: One of GRADINGS.
        dtype: Of all arithmetic in torch.
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
        # Weights that are rounded to float32 would be another function's.
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
        """The bands, as a solver asks for them again and again."""
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
        """Of one Hessian."""
        return self.products_s + self.decompress_s

    @property
    def gradients(self) -> float:
        """The same in gradients of the function: a machine-independent unit."""
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
    times = study.interleaved(candidates, seconds)
    return {
        recovery: Cost(
            len(comb.probes),
            times["gradient"],
            times[f"{recovery} products"],
            times[f"{recovery} decompress"],
        )
        for recovery, comb in combs.items()
    }


def write(figures: Figures, images: Path) -> Chapter:
    """Tables and plots of what ``measure`` found."""
    b, n = HALF_BANDWIDTH, figures.by_size[-2]
    _plot_costs(figures, images)
    _plot_errors(figures, images)
    direct, half = (
        figures.costs["direct", n, b, "float64"],
        figures.costs["substitution", n, b, "float64"],
    )
    largest = figures.by_size[-1]
    single, double = (figures.costs["direct", largest, b, t] for t in ("float32", "float64"))
    rows = []
    for r in RECOVERIES:
        cost = figures.costs[r, n, b, "float64"]
        rows.append(
            [
                r,
                cost.probes,
                1e3 * cost.products_s,
                1e3 * cost.decompress_s,
                cost.total_s / direct.total_s,
                *(figures.errors[r, n, b, "float64", g] for g in GRADINGS),
                figures.errors[r, n, b, "float32", "level"],
            ]
        )
    text = f"""
The function under study couples every variable with its b neighbours by the sine of their
product. Its Hessian is known in closed form and is evaluated in extended precision, so errors are
true ones. They are given in eps of the dtype times the sum of the sizes of an entry's terms. Cost
is given in gradients of the same function, a unit that does not depend on the machine. "Heavy"
variables weigh {number(HEAVY)} times the others: the last tenth (heavy end), or the first and the
last tenth (heavy ends).

At n = {number(n)} and b = {b}, the half bandwidth of the bicycle; times in ms, in float64:

{
        study.table(
            [
                "recovery",
                "probes",
                "products",
                "decompress",
                "of direct",
                "error, level",
                "heavy end",
                "heavy ends",
                "level, float32",
            ],
            rows,
        )
    }

{study.figure("hessian_recovery_costs", "Cost of a Hessian against half bandwidth and size")}

The products dominate, so what counts is their number; but a probe more costs little where the
time of torch's dispatch outweighs that of the arithmetic: at n = {number(figures.middle)} direct
takes {number(figures.costs["direct", figures.middle, b, "float64"].gradients)} gradients, not
{2 * b + 1}. At n = {number(largest)} direct takes {number(double.gradients)}, substitution
{number(figures.costs["substitution", largest, b, "float64"].gradients)}.

{study.figure("hessian_recovery_errors", "Largest error of an entry against size and by grading")}

Direct reads each entry once and adds nothing to its rounding. Substitution sums along chains, from
their lighter end: one heavy end does no harm, light entries between two heavy ends have lost
{number(np.log10(figures.errors["substitution", n, b, "float64", "heavy ends"]))} digits. Phase and
random mix the entries of a row, so light entries are as exact as the heavy ones beside them.

In float32 the direct Hessian takes {number(single.total_s / double.total_s)} of the time of
float64 at n = {number(largest)} and {number(_ratio(figures, figures.middle))} at
n = {number(figures.middle)}; its error is {number(_worst(figures, "direct", "float32"))} eps, as
in float64, but that eps is {number(float(np.finfo(np.float32).eps))}. `banded_hessian` takes
either; the solver of this package uses float64 throughout.
"""
    verdicts = (
        Verdict(
            "Comb probes with shifts, then index shuffling",
            _worst(figures, "direct", "float64") <= 16.0,
            f"{direct.probes} probes bring all of a Hessian with half bandwidth {b}, whatever its "
            f"size, at the price of {number(direct.gradients)} gradients at n = {number(n)}; no "
            f"entry is off by more than {number(_worst(figures, 'direct', 'float64'))} eps, level "
            f"or graded.",
        ),
        Verdict(
            "Symmetry should save half of the samples",
            half.probes <= direct.probes // 2 + 1,
            f"Substitution needs {half.probes} probes instead of {direct.probes} and "
            f"{number(half.total_s / direct.total_s)} of the time; on level Hessians up to "
            f"n = {number(largest)} its error stays below "
            f"{number(_worst(figures, 'substitution', 'float64', ('level',)))} eps, but between "
            f"two ends {number(HEAVY)} times heavier it grows to "
            f"{number(_worst(figures, 'substitution', 'float64'))} eps.",
        ),
        _mixing(figures, "phase", "An FFT with phases as an alternative", n),
        _mixing(figures, "random", "Random vectors and solving for the coefficients", n),
    )
    return Chapter("Recoveries: cost and accuracy", text.strip(), verdicts)


def _mixing(figures: Figures, recovery: str, idea: str, n: int) -> Verdict:
    b = HALF_BANDWIDTH
    cost, direct = (figures.costs[r, n, b, "float64"] for r in (recovery, "direct"))
    return Verdict(
        f"{idea}, to save something",
        cost.probes < direct.probes,
        f"It works, with {cost.probes} probes where combs take {direct.probes}, and in "
        f"{number(cost.total_s / direct.total_s)} times the time; on graded Hessians its error is "
        f"{number(_worst(figures, recovery, 'float64'))} eps, that of combs "
        f"{number(_worst(figures, 'direct', 'float64'))} eps.",
    )


def _ratio(figures: Figures, n: int) -> float:
    single, double = (
        figures.costs["direct", n, HALF_BANDWIDTH, t].total_s for t in ("float32", "float64")
    )
    return single / double


def _worst(
    figures: Figures, recovery: str, dtype: str, gradings: Sequence[str] = GRADINGS
) -> float:
    return max(
        error
        for (r, _, _, t, g), error in figures.errors.items()
        if (r, t) == (recovery, dtype) and g in gradings
    )


def _plot_costs(figures: Figures, images: Path) -> None:
    n, b = figures.middle, HALF_BANDWIDTH
    with study.axes(images, "hessian_recovery_costs", 2) as (left, right):
        for k, r in enumerate(RECOVERIES):
            cost = [figures.costs[r, n, w, "float64"].gradients for w in figures.by_bandwidth]
            study.line(left, k, figures.by_bandwidth, cost, r)
            cost = [figures.costs[r, m, b, "float64"].gradients for m in figures.by_size]
            study.line(right, k, figures.by_size, cost, r)
        left.set(xscale="log", yscale="log", xlabel="half bandwidth b", ylabel="gradients")
        study.plain(left.yaxis)
        left.set_xticks(figures.by_bandwidth, [str(w) for w in figures.by_bandwidth])
        left.set_xticks([], minor=True)
        left.set_title(f"Cost of one Hessian, n = {number(n)}")
        right.set(xscale="log", yscale="log", xlabel="number of variables n")
        study.plain(right.yaxis)
        right.set_title(f"b = {b}")
        left.legend()


def _plot_errors(figures: Figures, images: Path) -> None:
    n, b = figures.by_size[-2], HALF_BANDWIDTH
    with study.axes(images, "hessian_recovery_errors", 2) as (left, right):
        for k, r in enumerate(RECOVERIES):
            for dtype, style in (("float64", "-"), ("float32", ":")):
                errors = [figures.errors[r, m, b, dtype, "level"] for m in figures.by_size]
                label = r if dtype == "float64" else None
                left.plot(
                    figures.by_size,
                    errors,
                    study.MARKERS[k] + style,
                    color=study.COLORS[k],
                    label=label,
                )
            at = np.arange(len(GRADINGS)) + 0.2 * (k - 1.5)
            errors = [figures.errors[r, n, b, "float64", g] for g in GRADINGS]
            right.bar(at, errors, 0.18, color=study.COLORS[k])
        left.plot([], [], "k:", label="float32")
        left.set(xscale="log", yscale="log", xlabel="number of variables n", ylabel="eps")
        left.set_title(f"Largest error of an entry, level, b = {b}")
        left.legend()
        right.set(yscale="log")
        right.set_xticks(range(len(GRADINGS)), GRADINGS)
        right.grid(False, axis="x")
        right.set_title(f"By grading, n = {number(n)}, float64")


if __name__ == "__main__":
    study.run_alone(measure, write)
