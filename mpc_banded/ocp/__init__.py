# SPDX-License-Identifier: Apache-2.0
"""What to solve and how: an optimal control problem, its banded Newton system, its solver."""
