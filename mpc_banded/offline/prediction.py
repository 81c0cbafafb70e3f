# SPDX-License-Identifier: Apache-2.0
"""Errors of a model that predicts a recorded motion from the commands."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from mpc_banded.offline.lag import FEWEST_SAMPLES, Drive, Estimate, Model, Response, blocks_of

#: Horizons of the prediction error in s.
HORIZONS_S = (0.1, 0.2, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Prediction:
    """Root mean square error of predictions over a horizon, before and after.

    Attributes:
        horizon_s: Time ahead in s.
        before, after: Error in the unit of the motion, or of the position that it moves.
        ratio: After over before.
    """

    horizon_s: float
    before: Estimate
    after: Estimate
    ratio: Estimate


def prediction_errors(
    drive: Drive, times: np.ndarray, values: np.ndarray, is_position: bool, *models: Model
) -> list[Prediction]:
    """Return the errors of two models that know the commands and the motion at the start.

    Args:
        drive: The recorded commands.
        times: Times (M,) in s.
        values: Values (M,) of the motion, or of the position that moves.
        is_position: Whether the values are those of a position.
        models: The models before and after identification.
    """
    response = Response(drive, float(times[-1]))
    starts = np.unique(np.linspace(0, len(times) - 1, min(len(times), 4000)).astype(int))
    found = []
    for horizon in HORIZONS_S:
        begin = times[starts]
        end = begin + horizon
        after = np.searchsorted(times, end)
        inside = after < len(times)
        after = np.minimum(after, len(times) - 1)
        inside &= times[after] - times[after - 1] < 0.5
        inside &= drive.covers(begin, end)
        begin, end = begin[inside], end[inside]
        if len(begin) < FEWEST_SAMPLES:
            continue
        then = np.interp(end, times, values)
        errors = [
            _ahead(response, model, begin, end, values[starts][inside], is_position) - then
            for model in models
        ]
        found.append(_compared(horizon, begin, *(e**2 for e in errors)))
    return found


def _ahead(
    response: Response,
    model: Model,
    begin: np.ndarray,
    end: np.ndarray,
    now: np.ndarray,
    is_position: bool,
) -> np.ndarray:
    m = model.gain * response.filtered(model.lag) + model.bias
    if is_position:
        return now + response.moved(begin, end, model.delay, m)
    first, last = (np.interp(t - model.delay, response.grid, m) for t in (begin, end))
    keep = np.exp(-(end - begin) / model.lag) if model.lag > 1e-6 else np.zeros(len(now))
    return last + (now - first) * keep


def _compared(
    horizon: float, times: np.ndarray, before: np.ndarray, after: np.ndarray
) -> Prediction:
    """Compare squared errors (M,) of both models; intervals come from leaving out blocks."""
    block_of = blocks_of(times, horizon)
    names = np.unique(block_of)

    def estimate(figure: np.ndarray) -> Estimate:
        whole, parts = figure[0], figure[1:]
        half = student.ppf(0.975, max(1, len(parts) - 1)) * np.sqrt(
            (len(parts) - 1) / len(parts) * ((parts - parts.mean()) ** 2).sum()
        )
        return Estimate(float(whole), max(0.0, float(whole - half)), float(whole + half))

    kept = [np.ones(len(times), dtype=bool), *(block_of != name for name in names)]
    b, a = (np.sqrt([squares[keep].mean() for keep in kept]) for squares in (before, after))
    return Prediction(horizon, estimate(b), estimate(a), estimate(a / np.maximum(b, 1e-300)))
