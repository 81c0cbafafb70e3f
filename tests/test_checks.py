# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ARG005
"""A problem whose derivatives are not what they claim to be is refused, and no other."""

import numpy as np
import pytest
import torch
from problems import squared

from mpc_banded import RecedingHorizonController
from mpc_banded.ocp.problem import OptimalControlProblem


class WrongSlope(torch.autograd.Function):
    """A square whose author has forgotten the factor two."""

    @staticmethod
    def forward(x):
        return x * x

    @staticmethod
    def setup_context(ctx, inputs, output):  # noqa: ARG004
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return x * grad


def pulled(**functions):
    """Checks a controller of a mass on a spring, with some of its functions exchanged."""
    given = {
        "dynamics": lambda x, u, p: torch.stack([x[..., 1], u[..., 0] - x[..., 0].sin()], dim=-1),
        "cost": lambda x, u, p: squared(x) + squared(u),
        "rest": lambda x, p: squared(x),
        "room": lambda x, u, p: (2.0 - x[..., 0].abs()).unsqueeze(-1),
    } | functions
    problem = OptimalControlProblem(
        nx=2,
        nu=1,
        horizon=4,
        dt=0.1,
        dynamics=given["dynamics"],
        stage_costs={"cost": given["cost"]},
        terminal_costs={"rest": given["rest"]},
        inequalities={"room": given["room"]},
        penalties={"room": (1.0, 1.0)},
    )
    RecedingHorizonController(problem).check(np.array([0.7, -0.4]), {})


def test_check_is_content_with_gradients_that_are_right():
    pulled()
    pulled(cost=lambda x, u, p: torch.ones_like(x[..., 0]))
    pulled(cost=lambda x, u, p: 1e6 * squared(x) + (0.01 + squared(u)).sqrt())


@pytest.mark.parametrize(
    ("name", "function", "told"),
    [
        ("cost", lambda x, u, p: squared(x.detach()) + squared(u), "cost 'cost'"),
        ("cost", lambda x, u, p: WrongSlope.apply(x).sum(dim=-1), "cost 'cost'"),
        ("rest", lambda x, p: torch.from_numpy(squared(x).detach().numpy()), "cost 'rest'"),
        (
            "dynamics",
            lambda x, u, p: torch.stack([x[..., 1], u[..., 0] - x[..., 0].detach()], dim=-1),
            "the dynamics of state 1",
        ),
        ("room", lambda x, u, p: 2.0 - x[..., :1].detach() + u, "inequality 0"),
    ],
)
def test_check_names_the_function_whose_gradient_is_not_that_of_its_values(name, function, told):
    with pytest.raises(ValueError, match=f"the gradient of {told} is not that of its values"):
        pulled(**{name: function})
