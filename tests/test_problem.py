# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ARG005
"""A problem checks its arguments, and names each one that is wrong."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import CASES, squared, unicycle

from mpc_banded.ocp.problem import OptimalControlProblem, Trajectory

GOOD = {
    "nx": 2,
    "nu": 1,
    "horizon": 3,
    "dt": 0.1,
    "dynamics": lambda x, u, p: torch.cat([x[..., 1:], u], dim=-1),
    "stage_costs": {"state": lambda x, u, p: squared(x), "effort": lambda x, u, p: squared(u)},
    "terminal_costs": {"end": lambda x, p: squared(x)},
}


def build(**changes):
    return OptimalControlProblem(**{**GOOD, **changes})


def inequality(function):
    return {"inequalities": {"wall": function}, "penalties": {"wall": (1.0, 1.0)}}


WRONG_VALUES = [
    ({"nx": 0}, "nx is 0"),
    ({"nx": 2.0}, "nx is 2.0"),
    ({"nu": True}, "nu is True"),
    ({"horizon": -1}, "horizon is -1"),
    ({"dt": 0.0}, "dt is 0.0"),
    ({"dt": np.nan}, "dt is nan"),
    ({"dt": np.inf}, "dt is inf"),
    ({"dt": "0.1"}, "dt is '0.1'"),
    ({"stage_costs": {}, "terminal_costs": {}}, "both empty"),
    ({"terminal_costs": {"state": lambda x, p: squared(x)}}, "unique.*state"),
    ({"weights": {"efort": 1.0}}, "weights.*efort.*allowed.*effort"),
    ({"weights": {"effort": -1.0}}, r"weights\['effort'\] is -1.0"),
    ({"weights": {"effort": np.nan}}, r"weights\['effort'\] is nan"),
    ({"weights": {"effort": np.inf}}, r"weights\['effort'\] is inf"),
    ({"weights": {"effort": "high"}}, r"weights\['effort'\] is 'high'"),
    ({"input_bounds": (1.0, 1.0)}, "input_bounds must have lower < upper"),
    ({"input_bounds": (np.nan, 1.0)}, "input_bounds must have lower < upper"),
    ({"input_bounds": 3.0}, "input_bounds must be"),
    ({"input_bounds": ([0.0, 0.0], [1.0, 1.0])}, r"input_bounds must be.*\(1,\)"),
    ({"state_bounds": ([0.0] * 3, [1.0] * 3)}, r"state_bounds must be.*\(2,\)"),
    ({"state_bounds": (0.0, "far")}, "state_bounds must be"),
    ({"state_bounds": ([0.0, 2.0], [1.0, 1.0])}, "state_bounds must have lower < upper"),
    ({"penalties": {"wall": (1.0, 1.0)}}, "penalties has unknown names.*wall"),
    ({"inequalities": {"wall": lambda x, u, p: x}}, "penalties has no entry for.*'wall'"),
    ({**inequality(lambda x, u, p: x), "penalties": {"wall": (0.0, 0.0)}}, "'wall'.*both zero"),
    ({**inequality(lambda x, u, p: x), "penalties": {"wall": (-1.0, 1.0)}}, "'wall'"),
    ({**inequality(lambda x, u, p: x), "penalties": {"wall": (1.0, np.inf)}}, "'wall'"),
    ({**inequality(lambda x, u, p: x), "penalties": {"wall": (1.0,)}}, "'wall'"),
    ({**inequality(lambda x, u, p: x), "penalties": {"wall": 1.0}}, "'wall'"),
    ({"parameters": {"goal": 2}}, r"parameters\['goal'\] is 2"),
    ({"parameters": {"goal": (2.0,)}}, r"parameters\['goal'\]"),
    ({"parameters": {"goal": (-2,)}}, r"parameters\['goal'\]"),
    ({"dynamics": lambda x, u, p: x[..., :1]}, r"dynamics returned shape \(2, 1\).*\(2, 2\)"),
    ({"dynamics": lambda x, u, p: x[0]}, "dynamics returned shape"),
    ({"stage_costs": {"all": lambda x, u, p: x}}, r"stage_costs\['all'\] returned shape \(2, 2\)"),
    ({"stage_costs": {"all": lambda x, u, p: x.sum()}}, r"stage_costs\['all'\].*dim=-1"),
    ({"terminal_costs": {"e": lambda x, p: x}}, r"terminal_costs\['e'\] returned shape \(2, 2\)"),
    (inequality(lambda x, u, p: x[..., 0]), r"inequalities\['wall'\].*\(2,\).*\(2, m\)"),
    (inequality(lambda x, u, p: x.sum()), r"inequalities\['wall'\].*\(2, m\)"),
]

WRONG_TYPES = [
    ({"dynamics": None}, "dynamics is None"),
    ({"dynamics": lambda x, u, p: x.numpy()}, "dynamics returned ndarray"),
    ({"stage_costs": {"all": 1.0}}, r"stage_costs\['all'\] is 1.0"),
    ({"stage_costs": {"all": lambda x, u, p: 0.0}}, r"stage_costs\['all'\] returned float"),
    ({"terminal_costs": {"e": lambda x, p: 0.0}}, r"terminal_costs\['e'\] returned float"),
    (inequality(lambda x, u, p: 1.0), r"inequalities\['wall'\] returned float"),
]


def test_the_arguments_that_the_wrong_ones_replace_are_right():
    problem = build(**inequality(lambda x, u, p: x))
    assert problem.inequality_widths == {"wall": 2}
    assert problem.cost_names == ("state", "effort", "end")


@pytest.mark.parametrize(("changes", "message"), WRONG_VALUES)
def test_a_wrong_value_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


@pytest.mark.parametrize(("changes", "message"), WRONG_TYPES)
def test_a_wrong_type_is_named(changes, message):
    with pytest.raises(TypeError, match=message):
        build(**changes)


@pytest.mark.parametrize("name", CASES)
def test_functions_take_any_leading_dimensions(name):
    case = CASES[name]()
    problem = case.problem
    random = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, problem.nx, generator=random, dtype=torch.float64)
    u = torch.randn(4, 3, problem.nu, generator=random, dtype=torch.float64)
    p = {
        k: torch.as_tensor(np.broadcast_to(v, (4, 3, *v.shape)).copy())
        for k, v in case.parameters.items()
    }
    one = {k: v[2, 1] for k, v in p.items()}
    for function in (problem.dynamics, *problem.stage_costs.values()):
        torch.testing.assert_close(function(x, u, p)[2, 1], function(x[2, 1], u[2, 1], one))


def test_scalars_are_bounds_for_all_entries():
    problem = build(input_bounds=(-2, np.inf), state_bounds=([-1.0, -np.inf], 3))
    np.testing.assert_array_equal(problem.input_bounds, [[-2.0], [np.inf]])
    np.testing.assert_array_equal(problem.state_bounds, [[-1.0, -np.inf], [3.0, 3.0]])


def test_bounds_are_copies():
    lower = np.zeros(1)
    problem = build(input_bounds=(lower, 1.0))
    lower[0] = 9.0
    assert problem.input_bounds[0] == 0.0


def test_weights_default_to_one_and_cannot_be_changed_in_place():
    problem = build(weights={"effort": 0.25})
    assert dict(problem.weights) == {"state": 1.0, "effort": 0.25, "end": 1.0}
    with pytest.raises(TypeError):
        problem.weights["effort"] = 2.0


def test_one_stage_of_a_parameter_holds_for_all():
    case = unicycle(horizon=4)
    stages = case.problem.stage_parameters({"goal": [1, 2], "disc": np.ones((5, 3))})
    np.testing.assert_array_equal(stages["goal"], np.tile([1.0, 2.0], (5, 1)))
    np.testing.assert_array_equal(stages["disc"], np.ones((5, 3)))
    assert stages["goal"].dtype == np.float64


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"goal": np.zeros(2)}, r"parameters\['disc'\] is missing.*\(3,\)"),
        ({"goal": np.zeros(2), "disc": np.zeros(2)}, r"parameters\['disc'\] has shape \(2,\)"),
        ({"goal": np.zeros((4, 2)), "disc": np.zeros(3)}, r"parameters\['goal'\].*\(5, 2\)"),
        ({"goal": np.zeros(2), "disc": np.zeros(3), "aim": 1.0}, "unknown names.*aim"),
        ({"goal": "there", "disc": np.zeros(3)}, r"parameters\['goal'\]"),
        ({"goal": [[1.0], [2.0, 3.0]], "disc": np.zeros(3)}, r"parameters\['goal'\]"),
    ],
)
def test_a_wrong_parameter_value_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        unicycle(horizon=4).problem.stage_parameters(values)


def test_another_grid_keeps_everything_else():
    problem = unicycle().problem
    other = problem.with_grid(3, 0.5)
    assert (other.horizon, other.dt) == (3, 0.5)
    assert other.dynamics is problem.dynamics
    assert other.weights == problem.weights
    assert other.inequality_widths == problem.inequality_widths
    with pytest.raises(ValueError, match="horizon is 0"):
        problem.with_grid(0, 0.5)


@given(st.floats(-1.0, 2.0))
def test_a_trajectory_between_its_stages_is_linear_in_states_and_holds_inputs(time_s):
    times = 0.1 * np.arange(8)
    trajectory = Trajectory(np.column_stack([times, 3.0 - 2.0 * times]), times[:7, None], 0.1)
    inside = min(max(time_s, 0.0), 0.7)
    np.testing.assert_allclose(
        trajectory.state_at(time_s), [inside, 3.0 - 2.0 * inside], atol=1e-12
    )
    held = trajectory.input_at(time_s)[0]
    assert held in times[:7]
    assert held <= max(time_s, 0.0) + 1e-8
    assert time_s < held + 0.1 or held == times[6]


@pytest.mark.parametrize("dt", [0.05, 0.1, 0.02, 1 / 3])
def test_an_interval_begins_at_its_stage_however_the_time_is_rounded(dt):
    trajectory = Trajectory(np.zeros((31, 1)), np.arange(30.0)[:, None], dt)
    for k in range(30):
        assert trajectory.input_at(k * dt)[0] == k
        assert trajectory.input_at(sum([dt] * k))[0] == k


def test_trajectories_are_equal_if_their_values_are():
    one = Trajectory(np.array([[1.0], [np.nan]]), np.array([[2.0]]), 0.1)
    for same in (copy.deepcopy(one), pickle.loads(pickle.dumps(one)), replace(one)):
        assert one == same
    for other in (
        replace(one, states=np.array([[1.0], [2.0]])),
        replace(one, states=np.array([[1.0], [np.nan], [2.0]])),
        replace(one, inputs=np.array([[3.0]])),
        replace(one, dt=0.2),
        None,
    ):
        assert one != other
    with pytest.raises(TypeError, match="cannot be hashed"):
        hash(one)


def test_a_problem_is_copied_with_all_that_it_holds():
    one = unicycle().problem
    other = copy.deepcopy(one)
    assert other.cost_names == one.cost_names
    assert dict(other.weights) == dict(one.weights)
    assert dict(other.inequality_widths) == dict(one.inequality_widths)
    np.testing.assert_array_equal(other.input_bounds, one.input_bounds)
