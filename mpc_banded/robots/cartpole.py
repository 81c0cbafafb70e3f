# SPDX-License-Identifier: Apache-2.0
"""A cart that swings up and balances a pole; joint states in, effort out.

State (cart, pole, cart_velocity, pole_velocity): position of the cart in m, angle of the pole in
rad, zero when upright, and their rates. Input: force on the cart in N. The pole is a point mass
on a massless rod.
"""

import torch

from mpc_banded.robots.robot import Robot


def dynamics(x, u, p):
    """Return the rate of the state (Tedrake, Underactuated Robotics, 3.2, angle from upright)."""
    angle, cart_rate, pole_rate = x[..., 1], x[..., 2], x[..., 3]
    sin, cos = torch.sin(angle), torch.cos(angle)
    cart, pole, length, g = p["cart_mass"], p["pole_mass"], p["pole_length"], p["gravity"]
    force = u[..., 0] + pole * sin * (length * pole_rate**2 - g * cos)
    acceleration = force / (cart + pole * sin**2)
    pole_acceleration = (g * sin - acceleration * cos) / length
    return torch.stack([cart_rate, pole_rate, acceleration, pole_acceleration], dim=-1)


def cart(x, u, p):
    """Squared distance of the cart from its reference."""
    return (x[..., 0] - p["reference"][..., 0]) ** 2


def pole(x, u, p):
    """Height of the mass below its upright position, relative to the length of the rod."""
    return 1.0 - torch.cos(x[..., 1])


def rates(x, u, p):
    """Squared velocities."""
    return x[..., 2] ** 2 + x[..., 3] ** 2


def effort(x, u, p):
    """Squared force."""
    return u[..., 0] ** 2


def arrival(x, p):
    """Weighted sum of the costs of cart, pole and rates at the end of the horizon."""
    return cart(x, None, p) + 10.0 * pole(x, None, p) + rates(x, None, p)


cartpole = Robot(
    name="cartpole",
    states=("cart", "pole", "cart_velocity", "pole_velocity"),
    inputs=("force",),
    state_message="joint_states",
    command_message="effort",
    reference_message="joint_trajectory",
    reference=("cart",),
    dynamics=dynamics,
    stage_costs={"cart": cart, "pole": pole, "rates": rates, "effort": effort},
    terminal_costs={"arrival": arrival},
    weights={"cart": 1.0, "pole": 20.0, "rates": 0.02, "effort": 0.002, "arrival": 10.0},
    limits={"cart": (-2.0, 2.0), "force": (-15.0, 15.0)},
    model={"cart_mass": 1.0, "pole_mass": 0.1, "pole_length": 0.8, "gravity": 9.81},
    cyclic=("pole",),
    units={"cart": "m", "force": "N"},
)
