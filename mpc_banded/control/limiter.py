# SPDX-License-Identifier: Apache-2.0
"""Limits of what is sent."""

from __future__ import annotations

import math

import numpy as np

from mpc_banded.control.config import Config
from mpc_banded.robots.messages import Values


class Limiter:
    """Moves commands into their limits.

    Args:
        config: Configuration with the section ``limits``.
    """

    def __init__(self, config: Config) -> None:
        self.adopt(config)

    def adopt(self, config: Config) -> None:
        """Take over another configuration."""
        self.limits = config.parameters.limits

    def within_limits(self, values: Values) -> dict[str, float]:
        """Return the values within their limits; ``name@time`` has the limits of ``name``."""
        everywhere = (-math.inf, math.inf)
        return {
            name: float(np.clip(value, *self.limits.get(name.partition("@")[0], everywhere)))
            for name, value in values.items()
        }
