# SPDX-License-Identifier: Apache-2.0
"""The distance from any point to the nearest of many hits, and which hit that is.

A Euclidean distance transform (scipy.ndimage, exact on its grid) is made once for a scan or a
map; after that a question costs one look-up, however many hits there are.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

#: Length of a cell in m, and the most cells along a side.
CELL, MOST = 0.05, 400


class HitField:
    """Hits around a place.

    Args:
        hits: (M, 2) in m.
        centre: (2,) place in m around which they matter.
        reach: Distance from the centre along each axis up to which they matter, in m.

    Attributes:
        hits: Those within reach, (K, 2).
    """

    def __init__(self, hits: np.ndarray, centre: np.ndarray, reach: float) -> None:
        side = min(MOST, 2 * math.ceil(reach / CELL))
        self._origin = np.asarray(centre) - 0.5 * side * CELL
        index = np.floor((hits - self._origin) / CELL)
        inside = ((index >= 0) & (index < side)).all(axis=1)
        self.hits = hits[inside]
        self._side = side
        cells = index[inside].astype(np.intp)
        self._which = np.full((side, side), -1)
        self._which[cells[:, 0], cells[:, 1]] = np.arange(len(cells))
        if len(cells):
            nearest = ndimage.distance_transform_edt(
                self._which < 0, return_distances=False, return_indices=True
            )
            self._which = self._which[nearest[0], nearest[1]]

    def nearest(self, points: np.ndarray) -> np.ndarray:
        """The hit nearest to each point (..., 2), (..., 2); far away where there is none.

        A point outside the field is asked for at its rim. Among hits whose distances differ by
        less than a cell's diagonal the answer may be any.
        """
        if not len(self.hits):
            return np.full(points.shape, 1e6)
        index = np.floor((points - self._origin) / CELL).astype(np.intp)
        index = np.clip(index, 0, self._side - 1)
        return self.hits[self._which[index[..., 0], index[..., 1]]]

    def distance(self, points: np.ndarray) -> np.ndarray:
        """Distance (...) in m from each point (..., 2) to the hit nearest to it."""
        apart = self.nearest(points) - points
        return np.hypot(apart[..., 0], apart[..., 1])
