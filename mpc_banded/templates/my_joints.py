"""my_joints: joints that are moved by torques, and follow joint trajectories.

State: angle of each joint in rad, then the velocity of each in rad/s. Input: the torque of each in
N m. Joint states come in, efforts go out.
"""

import torch

from mpc_banded.robots import Robot

JOINTS = ("shoulder", "elbow")  # as in the messages
VELOCITIES = tuple(f"{joint}_velocity" for joint in JOINTS)
TORQUES = tuple(f"{joint}_torque" for joint in JOINTS)
N = len(JOINTS)


def dynamics(x, u, p):
    """Rate of the state. Write x[..., 0], never x[0]: the functions see many states at once."""
    velocity = x[..., N:]
    damping, inertia = p["damping"][..., None], p["inertia"][..., None]  # the same for all joints
    acceleration = (u - damping * velocity) / inertia
    return torch.cat([velocity, acceleration], dim=-1)


# Costs: what is small when the robot does well. p["reference"] holds the columns of `reference`.


def position(x, u, p):
    """Squared distance of the angles from the trajectory."""
    return ((x[..., :N] - p["reference"][..., :N]) ** 2).sum(dim=-1)


def velocity(x, u, p):
    """Squared error of the velocities."""
    return ((x[..., N:] - p["reference"][..., N:]) ** 2).sum(dim=-1)


def effort(x, u, p):
    """Squared torques."""
    return (u**2).sum(dim=-1)


def arrival(x, p):
    """Cost at the end of the horizon."""
    return position(x, None, p) + 0.1 * velocity(x, None, p)


robot = Robot(
    name="my_joints",
    states=(*JOINTS, *VELOCITIES),
    inputs=TORQUES,
    state_message="joint_states",
    command_message="effort",
    reference_message="joint_trajectory",
    reference=(*JOINTS, *VELOCITIES),
    dynamics=dynamics,
    stage_costs={"position": position, "velocity": velocity, "effort": effort},
    terminal_costs={"arrival": arrival},
    weights={"position": 20.0, "velocity": 1.0, "effort": 0.01, "arrival": 50.0},
    limits={
        **dict.fromkeys(JOINTS, (-2.5, 2.5)),
        **dict.fromkeys(VELOCITIES, (-2.0, 2.0)),
        **dict.fromkeys(TORQUES, (-5.0, 5.0)),
    },
    units=dict.fromkeys(JOINTS, "rad") | dict.fromkeys(TORQUES, "N m"),
    model={"inertia": 0.5, "damping": 0.2},
    horizon=30,
)
