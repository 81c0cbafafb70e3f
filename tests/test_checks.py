# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ARG005
"""Problems with wrong derivatives are refused, and no others."""

import numpy as np
import pytest
import torch
from problems import squared

from mpc_banded import RecedingHorizonController, banded_hessian
from mpc_banded.ocp.differences import WrongDerivative, check_derivatives
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


class OnceOnly(torch.autograd.Function):
    """A cube with a backward that autograd cannot derive again."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 3.0 * x * x * grad


def test_check_names_the_function_whose_second_derivative_is_missing():
    heavy = {"dynamics": lambda x, u, p: torch.stack([x[..., 1], 1e3 * u[..., 0]], dim=-1)}
    with pytest.raises(WrongDerivative, match="the second derivative of cost 'rest' is not that"):
        pulled(rest=lambda x, p: 1e-2 * OnceOnly.apply(x).sum(dim=-1), **heavy)


def chain(z):
    return ((z[1:] - z[:-1]) ** 4).sum() + squared(z)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "function",
    [
        torch.no_grad()(chain),
        lambda z: OnceOnly.apply(z).sum(),
        lambda z: ((z[1:] - z[:-1].detach()) ** 4).sum(),
        lambda z: squared(z) + torch.tensor((z**2).sum().item(), dtype=z.dtype),
        lambda z: WrongSlope.apply(z).sum(),
    ],
)
def test_no_hessian_is_made_of_derivatives_that_are_wrong(function, dtype):
    z = torch.linspace(0.1, 1.0, 12, dtype=dtype)
    with pytest.raises(WrongDerivative):
        banded_hessian(function, z, 1)
    banded_hessian(function, z, 11, check=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "function",
    [
        chain,
        lambda z: squared(z) + z.abs().sum(),
        lambda z: squared(z) + torch.relu(-z).sum(),
        lambda z: squared(torch.relu(z)),
        lambda z: torch.tanh(1e3 * z).sum() + squared(z),
        lambda z: 1e6 + squared(z),
        lambda z: z.sum(),
        lambda z: torch.ones((), dtype=z.dtype),
    ],
)
def test_right_derivatives_pass_at_kinks_and_where_they_change_fast(function, dtype):
    banded_hessian(function, torch.zeros(6, dtype=dtype), 1)


def friction(stiffness, slope=torch.tanh):
    return lambda x, u, p: torch.stack(
        [x[..., 1], u[..., 0] - 0.5 * slope(stiffness * x[..., 1])], dim=-1
    )


@pytest.mark.parametrize("stiffness", [1.0, 30.0, 1e3, 1e4])
@pytest.mark.parametrize("scheme", ["rk4", "midpoint"])
def test_check_tells_a_stiff_function_from_one_that_is_detached(stiffness, scheme):
    def check(slope):
        problem = OptimalControlProblem(
            nx=2,
            nu=1,
            horizon=10,
            dt=0.1,
            dynamics=friction(stiffness, slope),
            stage_costs={"cost": lambda x, u, p: squared(x) + squared(u)},
        )
        RecedingHorizonController(problem, scheme).check(np.array([1.0, 0.0]), {})

    check(torch.tanh)
    with pytest.raises(WrongDerivative, match="the dynamics of state"):
        check(lambda v: torch.tanh(v.detach()) + 0.0 * v)


def test_what_is_not_finite_is_not_judged():
    check_derivatives(["root"], lambda step: (step * torch.ones(1, dtype=torch.float64)).sqrt())
    check_derivatives(["log"], lambda step: (step - torch.ones(1, dtype=torch.float64)).log())
