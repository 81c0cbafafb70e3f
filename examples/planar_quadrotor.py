# SPDX-License-Identifier: Apache-2.0
"""Quadrotor in a vertical plane: flies to places, and tilts to get there.

State (x, z, pitch, x_velocity, z_velocity, pitch_velocity): m and rad. Input: thrust of each side
in N beyond what hovering takes, so that a stop is to hover. The command is the whole thrust.
"""

import numpy as np
import torch

from mpc_banded.robots import Robot


def dynamics(x, u, p):
    """Rigid body with two thrusts (Tedrake, Underactuated Robotics, section 3.4)."""
    pitch, rate = x[..., 2], x[..., 5]
    thrust = p["mass"] * p["gravity"] + u[..., 0] + u[..., 1]
    turn = p["arm"] * (u[..., 0] - u[..., 1]) / p["inertia"]
    ahead = thrust * torch.sin(pitch) / p["mass"]
    up = thrust * torch.cos(pitch) / p["mass"] - p["gravity"]
    return torch.stack([x[..., 3], x[..., 4], rate, ahead, up, turn], dim=-1)


def place(x, u, p):
    """Squared distance from where it should be."""
    return ((x[..., :2] - p["reference"][..., :2]) ** 2).sum(dim=-1)


def pitch(x, u, p):
    """Squared tilt."""
    return x[..., 2] ** 2


def rates(x, u, p):
    """Squared velocities."""
    return (x[..., 3:] ** 2).sum(dim=-1)


def effort(x, u, p):
    """Squared thrust beyond hovering."""
    return (u**2).sum(dim=-1)


def arrival(x, p):
    """Cost at the end of the horizon."""
    return place(x, None, p) + 0.1 * rates(x, None, p)


def command(x, u, model):
    """Whole thrust of each side in N."""
    hover = 0.5 * model["mass"] * model["gravity"]
    return {"left": hover + float(u[0]), "right": hover + float(u[1])}


def actuate(x, command, model):
    """Thrust beyond hovering; the rotors follow at once."""
    hover = 0.5 * model["mass"] * model["gravity"]
    return np.array([command["left"] - hover, command["right"] - hover])


quadrotor = Robot(
    name="planar quadrotor",
    states=("x", "z", "pitch", "x_velocity", "z_velocity", "pitch_velocity"),
    inputs=("left_extra", "right_extra"),
    cyclic=("pitch",),
    state_message="joint_states",
    command_message="effort",
    reference_message="joint_trajectory",
    reference=("x", "z"),
    dynamics=dynamics,
    stage_costs={"place": place, "pitch": pitch, "rates": rates, "effort": effort},
    terminal_costs={"arrival": arrival},
    weights={"place": 10.0, "pitch": 1.0, "rates": 0.2, "effort": 0.05, "arrival": 30.0},
    limits={
        "pitch": (-0.8, 0.8),
        "left_extra": (-2.0, 2.0),
        "right_extra": (-2.0, 2.0),
    },
    units={"z": "m", "left_extra": "N", "right_extra": "N", "left": "N", "right": "N"},
    model={"mass": 0.8, "arm": 0.2, "inertia": 0.02, "gravity": 9.81},
    command=command,
    actuate=actuate,
    horizon=40,
)
