# SPDX-License-Identifier: Apache-2.0
"""Cart with two poles, one on the other, swung up and balanced by moving the cart alone.

State (cart, lower, upper, and their velocities): position in m, angles from upright in rad. Input:
force on the cart in N. The poles are point masses on massless rods.
"""

import torch

from mpc_banded.robots import Robot


def dynamics(x, u, p):
    """Equations of Lagrange; their symmetric matrix is solved by its LDL factors."""
    a, b, da, db = x[..., 1], x[..., 2], x[..., 4], x[..., 5]
    m1, m2, l1, l2, g = p["lower_mass"], p["upper_mass"], p["lower"], p["upper"], p["gravity"]
    m, apart = m1 + m2, a - b
    m00, m01, m02 = p["cart_mass"] + m, m * l1 * torch.cos(a), m2 * l2 * torch.cos(b)
    m11, m12, m22 = m * l1**2, m2 * l1 * l2 * torch.cos(apart), m2 * l2**2
    f0 = u[..., 0] + m * l1 * torch.sin(a) * da**2 + m2 * l2 * torch.sin(b) * db**2
    f1 = m * g * l1 * torch.sin(a) - m2 * l1 * l2 * torch.sin(apart) * db**2
    f2 = m2 * g * l2 * torch.sin(b) + m2 * l1 * l2 * torch.sin(apart) * da**2
    k1, k2 = m01 / m00, m02 / m00
    d1, e = m11 - k1 * m01, m12 - k1 * m02
    k3 = e / d1
    d2 = m22 - k2 * m02 - k3 * e
    r1 = f1 - k1 * f0
    upper = (f2 - k2 * f0 - k3 * r1) / d2
    lower = r1 / d1 - k3 * upper
    cart = f0 / m00 - k1 * lower - k2 * upper
    return torch.stack([x[..., 3], da, db, cart, lower, upper], dim=-1)


def place(x, u, p):
    """Squared distance of the cart from its reference."""
    return (x[..., 0] - p["reference"][..., 0]) ** 2


def poles(x, u, p):
    """Height that the masses lack to upright."""
    return 2.0 - torch.cos(x[..., 1]) - torch.cos(x[..., 2])


def rates(x, u, p):
    """Squared velocities."""
    return (x[..., 3:] ** 2).sum(dim=-1)


def effort(x, u, p):
    """Squared force."""
    return u[..., 0] ** 2


def arrival(x, p):
    """Cost at the end of the horizon."""
    return place(x, None, p) + 20.0 * poles(x, None, p) + rates(x, None, p)


double_cartpole = Robot(
    name="double cart-pole",
    states=("cart", "lower", "upper", "cart_velocity", "lower_velocity", "upper_velocity"),
    inputs=("force",),
    cyclic=("lower", "upper"),
    state_message="joint_states",
    command_message="effort",
    reference_message="joint_trajectory",
    reference=("cart",),
    dynamics=dynamics,
    stage_costs={"place": place, "poles": poles, "rates": rates, "effort": effort},
    terminal_costs={"arrival": arrival},
    weights={"place": 1.0, "poles": 20.0, "rates": 0.02, "effort": 0.001, "arrival": 10.0},
    limits={"cart": (-2.0, 2.0), "force": (-30.0, 30.0)},
    units={"cart": "m", "force": "N"},
    model={
        "cart_mass": 1.0,
        "lower_mass": 0.2,
        "upper_mass": 0.1,
        "lower": 0.6,
        "upper": 0.4,
        "gravity": 9.81,
    },
    horizon=40,
)
