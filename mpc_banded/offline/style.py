# SPDX-License-Identifier: Apache-2.0
"""Colours and style of all plots, and the backend that draws them without a screen."""

from __future__ import annotations

from typing import Any

import matplotlib

matplotlib.use("Agg")

BLUE, ORANGE, GREEN, RED, GREY = "#1f5fa8", "#d97706", "#2f855a", "#b91c1c", "#9aa3ad"
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "text.parse_math": False,  # a name may hold dollar signs
}
