# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ARG005
"""Machine code finds the results of torch, and is as robust."""

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from functools import cache

import numpy as np
import pytest
import torch
from problems import (
    CASES,
    Case,
    bicycle,
    compiled_evaluator,
    controller_of,
    double_integrator,
    mixed,
    random_iterate,
    rollout,
    scalar,
    solver_of,
    source_of,
    squared,
    standing,
    tangled,
    unicycle,
    van_der_pol,
)

from mpc_banded.codegen import build, emit
from mpc_banded.codegen import cache as cache_module
from mpc_banded.codegen.cache import LibraryCache, NotBuilt
from mpc_banded.codegen.emit import Argument, Result, Section
from mpc_banded.codegen.trace import UnsupportedOperation
from mpc_banded.control.build import build_controller, build_problem
from mpc_banded.control.config import Config
from mpc_banded.ocp import compiled as compiled_module
from mpc_banded.ocp import kernels
from mpc_banded.ocp.compiled import CompiledEvaluator, compile_evaluator
from mpc_banded.ocp.eager import RECOVERIES, EagerEvaluator
from mpc_banded.ocp.evaluator import Merit
from mpc_banded.ocp.newton import Point
from mpc_banded.ocp.problem import OptimalControlProblem
from mpc_banded.ocp.solver import NewtonSolver, SolverOptions, Status
from mpc_banded.ocp.transcription import SCHEMES, Transcription
from mpc_banded.robots.robot import BUILT_IN

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="there is no C compiler"
)


def terminal_only() -> Case:
    case = unicycle(horizon=3)
    problem = replace(case.problem, stage_costs={}, weights={})
    return Case(problem, case.state, case.parameters)


def linear() -> Case:
    """Nothing to differentiate twice, some things not even once."""
    problem = OptimalControlProblem(
        nx=1,
        nu=2,
        horizon=3,
        dt=0.5,
        dynamics=lambda x, u, p: torch.ones_like(x),
        stage_costs={"linear": lambda x, u, p: x[..., 0], "none": lambda x, u, p: 0 * u[..., 0]},
        terminal_costs={"constant": lambda x, p: torch.ones_like(x[..., 0])},
        inequalities={"always": lambda x, u, p: torch.ones_like(x)},
        penalties={"always": (1.0, 0.0)},
    )
    return Case(problem, np.array([0.5]))


BOUNDS = {
    "input_bounds": ([-np.inf, -2.0], [3.0, np.inf]),
    "state_bounds": ([-1.0, -np.inf, -3.0], [0.5, 2.0, np.inf]),
}
PROBLEMS = {
    "double_integrator": (lambda: double_integrator(horizon=5), "euler", 1),
    "unicycle": (lambda: unicycle(horizon=5), "midpoint", 1),
    "bicycle": (lambda: bicycle(horizon=4), "rk4", 1),
    "cartpole": (lambda: CASES["cartpole"](horizon=4), "trapezoid", 1),
    "van_der_pol, stage cost only": (lambda: van_der_pol(horizon=4), "rk4", 2),
    "tangled": (lambda: tangled(2, 2, 4), "rk4", 1),
    "tangled, bounded on some sides": (lambda: tangled(3, 2, 4, **BOUNDS), "trapezoid", 1),
    "tangled, no inequality": (lambda: tangled(2, 1, 4, inequalities=0), "euler", 2),
    "tangled, one stage": (lambda: tangled(3, 2, 1, **BOUNDS), "midpoint", 1),
    "tangled, two stages": (lambda: tangled(2, 3, 2), "midpoint", 1),
    "terminal cost only": (terminal_only, "midpoint", 1),
    "linear": (linear, "euler", 1),
}


@cache
def problem_of(name):
    """Case, and its eager derivatives."""
    make, scheme, substeps = PROBLEMS[name]
    case = make()
    return case, EagerEvaluator(Transcription(case.problem, scheme, substeps))


@pytest.fixture(scope="session")
def machine(libraries):
    """Compiled derivatives for eager ones, each built once."""
    made = {}

    def compile_once(eager: EagerEvaluator) -> CompiledEvaluator:
        if eager not in made:
            source = source_of(eager)
            made[eager] = compiled_evaluator(eager, libraries.library(source))
        return made[eager]

    return compile_once


def assert_near(found, expected, digits=12):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(found[~finite], expected[~finite])
    scale = np.abs(expected[finite]).max(initial=1e-3)
    np.testing.assert_allclose(found[finite], expected[finite], rtol=0, atol=10.0**-digits * scale)


def assert_same(one, other, digits=12):
    """Compare two Newton systems, steps or merits, field by field."""
    for field in fields(other):
        if field.name == "point":
            assert_near(one.point.duals, other.point.duals, digits)
        else:
            assert_near(getattr(one, field.name), getattr(other, field.name), digits)


def assert_agree(machine, eager, point, data):
    """Everything that both can be asked for."""
    system, expected = (
        machine.system(point, data, mixed(machine, 3.0)),
        eager.system(point, data, mixed(eager, 3.0)),
    )
    assert_same(system, expected)
    lam, mu = point.multipliers, point.mu
    assert_same(
        machine.merit(point.z, lam, mu, data, mixed(machine)),
        eager.merit(point.z, lam, mu, data, mixed(eager)),
    )
    random = np.random.default_rng(5)
    shift = 10.0 * np.abs(expected.bands).sum(axis=0).max()  # makes any matrix definite
    for accuracy in (0.0, np.inf):  # with all sweeps and with one
        found = machine.newton_step(system, mixed(machine, 3.0), shift, accuracy)
        # Distances close to nothing magnify the rounding of the solve.
        assert_same(
            found, eager.newton_step(expected, mixed(eager, 3.0), shift, accuracy), digits=9
        )
    assert_near(machine.central_duals(point.z, 0.3, data), eager.central_duals(point.z, 0.3, data))
    assert_near(machine.cost_curvature(point.z, data), eager.cost_curvature(point.z, data))
    problem = eager.transcription.problem
    inputs = 0.1 * random.standard_normal((problem.horizon, problem.nu))
    assert_near(machine.rollout(inputs, data), eager.rollout(inputs, data))


PROBED = ("bicycle", "tangled, bounded on some sides", "tangled, one stage", "linear")


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_machine_code_agrees_with_torch(monkeypatch, machine, name):
    monkeypatch.setattr(kernels, "WRITTEN_OUT", np.inf)
    case, eager = problem_of(name)
    data = case.data(eager.transcription)
    for seed in range(3):
        assert_agree(machine(eager), eager, random_iterate(eager, case, seed), data)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBED)
def test_second_derivatives_in_a_loop_agree_with_torch(monkeypatch, machine, name):
    """The other form of the code, that of large problems."""
    monkeypatch.setattr(kernels, "WRITTEN_OUT", 0)
    case, eager = problem_of(name)
    eager, data = EagerEvaluator(eager.transcription), case.data(eager.transcription)
    for seed in range(3):
        assert_agree(machine(eager), eager, random_iterate(eager, case, seed), data)


#: Each robot with its own scheme and another, each scheme with two robots at least.
GRIDS = {
    "unicycle": [("midpoint", 1), ("euler", 2)],
    "omni": [("midpoint", 1), ("trapezoid", 1)],
    "bicycle": [("rk4", 1), ("trapezoid", 1)],
    "cartpole": [("midpoint", 1), ("rk4", 2)],
    "joint_space": [("midpoint", 1), ("euler", 1)],
}


def test_every_robot_and_every_scheme_are_compiled_below():
    assert set(GRIDS) == set(BUILT_IN)
    assert {scheme for grids in GRIDS.values() for scheme, _ in grids} == set(SCHEMES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("robot", "scheme", "substeps"),
    [(robot, *grid) for robot, grids in GRIDS.items() for grid in grids],
)
def test_robots_and_schemes_are_compiled(monkeypatch, machine, robot, scheme, substeps):
    monkeypatch.setattr(build, "FLAGS", ("-O0", *build.FLAGS[1:]))  # sooner compiled
    given = {"robot": robot, "horizon": 3, "transcription": scheme, "substeps": substeps}
    problem = build_problem(Config(given))
    random = np.random.default_rng(3)
    parameters = {
        name: random.uniform(0.5, 1.5, (problem.horizon + 1, *shape))
        for name, shape in problem.parameters.items()
    }
    case = Case(problem, random.uniform(0.1, 0.9, problem.nx), parameters)
    eager = EagerEvaluator(Transcription(problem, scheme, substeps))
    data = case.data(eager.transcription)
    for seed in range(2):
        assert_agree(machine(eager), eager, random_iterate(eager, case, seed), data)


@pytest.mark.slow
@pytest.mark.parametrize("recovery", RECOVERIES)
@pytest.mark.parametrize("name", ["unicycle", "tangled, bounded on some sides"])
def test_machine_code_finds_what_every_recovery_finds(machine, name, recovery):
    case, eager = problem_of(name)
    point, data = random_iterate(eager, case), case.data(eager.transcription)
    expected = EagerEvaluator(eager.transcription, recovery=recovery).system(
        point, data, mixed(eager, 3.0)
    )
    found = machine(eager).system(point, data, mixed(eager, 3.0))
    assert_same(found, expected, digits=9 if recovery == "random" else 11)


@pytest.mark.slow
def test_a_larger_half_bandwidth_holds_zeros(machine):
    case, eager = problem_of("tangled")
    wide = EagerEvaluator(eager.transcription, half_bandwidth=9)
    point, data = random_iterate(eager, case), case.data(eager.transcription)
    found = machine(wide).system(point, data, mixed(wide, 3.0))
    assert_same(found, wide.system(point, data, mixed(wide, 3.0)))
    bands = machine(eager).system(point, data, mixed(eager, 3.0)).bands
    assert_near(found.bands[: len(bands)], bands)
    assert not found.bands[len(bands) :].any()


def test_live_inputs_are_never_compiled_in(machine):
    """One library serves all weights, parameters, states, multipliers, duals and barriers."""
    case, eager = problem_of("tangled, bounded on some sides")
    one = machine(eager)
    random = np.random.default_rng(7)
    for seed in range(4):
        other = Case(
            case.problem,
            random.standard_normal(3),
            {"a": random.standard_normal((case.problem.horizon + 1, 2))},
        )
        weights = {"stage": 10.0 ** random.uniform(-3, 3), "end": float(seed)}
        data = other.data(eager.transcription, weights)
        point = random_iterate(eager, other, seed, mu=10.0 ** random.uniform(-6, 0))
        assert_agree(one, eager, point, data)


@pytest.mark.slow
def test_results_are_arrays_of_their_own(machine):
    """What is asked for later does not write into what was given before."""
    case, eager = problem_of("bicycle")
    one, data = machine(eager), case.data(eager.transcription)
    first = one.system(random_iterate(eager, case), data, mixed(one, 3.0))
    step = one.newton_step(first, mixed(one, 3.0), 1e3, 0.0)
    names = [(each, field.name) for each in (first, step) for field in fields(each)]
    names.remove((first, "point"))
    names.append((first.point, "duals"))
    before = [np.copy(getattr(each, name)) for each, name in names]
    second = one.system(random_iterate(eager, case, seed=1), data, mixed(one, 1.0))
    one.newton_step(second, mixed(one, 1.0), 1e4, 0.0)
    for (each, name), copy in zip(names, before, strict=True):
        np.testing.assert_array_equal(getattr(each, name), copy)


def test_arguments_are_read_whatever_their_layout_and_left_as_they_are(machine):
    case, eager = problem_of("tangled, bounded on some sides")
    one, data = machine(eager), case.data(eager.transcription)
    point = random_iterate(eager, case)
    strided = Point(
        np.repeat(point.z, 2)[::2],
        np.asfortranarray(point.multipliers),
        np.asfortranarray(point.duals),
        point.mu,
    )
    expected = one.system(point, data, mixed(one, 3.0))
    assert_same(one.system(strided, data, mixed(one, 3.0)), expected, digits=15)
    assert_same(
        one.merit(strided.z, strided.multipliers, 0.1, data, mixed(one)),
        one.merit(point.z, point.multipliers, 0.1, data, mixed(one)),
        digits=15,
    )
    np.testing.assert_array_equal(strided.z, point.z)
    np.testing.assert_array_equal(strided.duals, point.duals)


def test_threads_find_the_bits_that_one_finds_alone(machine):
    case, eager = problem_of("unicycle")
    library, data = machine(eager).library, case.data(eager.transcription)
    iterates = [random_iterate(eager, case, seed) for seed in range(8)]

    def bands(point):
        one = compiled_evaluator(eager, library)
        return [one.system(point, data, mixed(one, 3.0)).bands for _ in range(50)]

    with ThreadPoolExecutor(4) as pool:
        for point, found in zip(iterates, pool.map(bands, iterates), strict=True):
            alone = machine(eager).system(point, data, mixed(eager, 3.0)).bands
            for other in found:
                np.testing.assert_array_equal(alone, other)


# Solving and controlling


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["unicycle", "bicycle", "cartpole", "van_der_pol, stage cost only"]
)
def test_solutions_are_those_of_torch(machine, name):
    case, eager = problem_of(name)
    data = case.data(eager.transcription)
    expected = NewtonSolver(eager, SolverOptions()).solve(standing(case), data)
    found = NewtonSolver(machine(eager), SolverOptions()).solve(standing(case), data)
    assert found.status is expected.status is Status.CONVERGED
    assert len(found.iterations) == len(expected.iterations)
    np.testing.assert_allclose(found.point.z, expected.point.z, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.costs, expected.costs, rtol=1e-9)
    np.testing.assert_allclose(found.violations, expected.violations, rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unicycle", "bicycle"])
def test_a_closed_loop_has_the_same_commands(libraries, name):
    """Fifty steps, each loop on its own; the weights change on the way."""
    case, eager = problem_of(name)
    scheme = eager.transcription.scheme

    def drive(controller):
        state, commands = case.state, []
        for k in range(50):
            if k == 25:
                controller.set_weights({"effort": 0.5})
            step = controller.step(state, case.parameters)
            assert step.status is Status.CONVERGED
            commands.append(step.command)
            state = rollout(Case(case.problem, state, case.parameters), "rk4", step.command[None])
            state = state[-1]
        return np.array(commands)

    by_torch, by_machine = controller_of(case, scheme), controller_of(case, scheme)
    by_machine.evaluator = compile_evaluator(by_machine.evaluator, libraries)
    assert by_machine.library is not None
    np.testing.assert_allclose(drive(by_machine), drive(by_torch), rtol=0, atol=1e-9)


# What is not finite


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["state", "parameters", "z", "multipliers", "duals"])
def test_what_is_not_finite_is_not_hidden(machine, where, value):
    """The solver looks at residuals and bands: one of them must tell."""
    case, eager = problem_of("unicycle")
    point = random_iterate(eager, case)
    data = case.data(eager.transcription)
    if where == "state":
        data.initial_state[1] = value
    elif where == "parameters":
        data.parameters["goal"][2, 0] = value
    else:
        array = getattr(point, where).copy()
        array.reshape(-1)[4] = value
        point = replace(point, **{where: array})
    with np.errstate(invalid="ignore"):
        found = system_tells(machine(eager).system(point, data, mixed(eager, 3.0)))
        assert found == system_tells(eager.system(point, data, mixed(eager, 3.0)))
    assert found or (where == "duals" and value != np.nan)  # they are brought back into range


def system_tells(system):
    arrays = (system.cost_gradient, system.barrier_gradient, system.dynamics_gradient)
    parts = (*arrays, system.defects, system.bands)
    return not all(np.isfinite(part).all() for part in parts)


@pytest.mark.parametrize(
    ("dynamics", "cost", "state"),
    [
        (lambda x, u, p: x.log() + u, lambda x, u, p: squared(x) + squared(u), -1.0),
        (lambda x, u, p: u, lambda x, u, p: (x - 2.0).sqrt()[..., 0] + squared(u), 1.0),
        (lambda x, u, p: u, lambda x, u, p: (1e3 * x.exp()).exp()[..., 0] + squared(u), 1.0),
        (lambda x, u, p: u, lambda x, u, p: (x - 1.0).abs().sqrt()[..., 0] + squared(u), 1.0),
        (lambda x, u, p: u + x / (x - 1.0), lambda x, u, p: squared(u), 1.0),
    ],
    ids=["log", "sqrt", "overflow", "slope", "division"],
)
def test_values_that_are_not_finite_have_a_status(machine, dynamics, cost, state):
    case = scalar(dynamics, cost, horizon=2)
    case = Case(case.problem, np.array([state]))
    solver = solver_of(case)
    solver = NewtonSolver(machine(solver.evaluator), SolverOptions())
    solution = solver.solve(standing(case), case.data(solver.evaluator.transcription))
    assert solution.status is Status.NON_FINITE
    assert not solution.iterations


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_compiled_controller_survives_what_is_not_finite(libraries, value):
    case, _ = problem_of("unicycle")
    controller = controller_of(case)
    controller.evaluator = compile_evaluator(controller.evaluator, libraries)
    good = controller.step(case.state, case.parameters)
    for state, parameters in (
        (np.array([0.0, value, 0.0]), case.parameters),
        (case.state, {**case.parameters, "disc": np.array([0.8, value, 0.3])}),
    ):
        step = controller.step(state, parameters)
        assert step.status is not Status.CONVERGED
        assert np.isfinite(step.command).all()
    controller.reset()
    again = controller.step(case.state, case.parameters)
    np.testing.assert_array_equal(again.command, good.command)


def test_outside_the_input_bounds_the_merit_is_infinite(machine):
    case, eager = problem_of("unicycle")
    point, data = random_iterate(eager, case), case.data(eager.transcription)
    for value in (1.0, 5.0, -0.2, -9.0):
        z = point.z.copy()
        z[0] = value
        merit = machine(eager).merit(z, point.multipliers, 0.1, data, mixed(eager))
        assert merit.barrier == np.inf
        expected = eager.merit(z, point.multipliers, 0.1, data, mixed(eager))
        assert_same(replace(merit, barrier=0.0), replace(expected, barrier=0.0))


# The code itself

OF_ONE = (
    *("neg", "abs", "sign", "logical_not", "sqrt", "floor", "ceil", "trunc", "round"),
    *("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "erf", "erfc"),
    *("sin", "cos", "tan", "asin", "acos", "atan"),
    *("sinh", "cosh", "tanh", "asinh", "acosh", "atanh"),
)
OF_TWO = (
    *("add", "sub", "mul", "div", "pow", "atan2", "hypot", "fmod", "remainder"),
    *("maximum", "minimum", "copysign", "lt", "le", "gt", "ge", "eq", "ne"),
    *("logical_and", "logical_or", "logical_xor"),
)


def test_each_operation_is_torchs_also_where_it_is_not_finite(tmp_path):
    def everything(a, b):
        values = [getattr(torch, name)(a) for name in OF_ONE]
        values += [getattr(torch, name)(a, b) for name in OF_TWO]
        values += [torch.where(a > b, a, b), torch.isnan(a), torch.isfinite(b), a.clamp(-0.5, 0.5)]
        return [torch.stack([value.double() for value in values], dim=-1)]

    special = [0.0, -0.0, 0.25, -0.75, 1.0, -1.0, 2.0, -2.5, 3.5, 1e-3, -7e2, 1e4]
    special += [np.inf, -np.inf, np.nan]
    a, b = (grid.ravel() for grid in np.meshgrid(special, special))
    expected = everything(torch.tensor(a), torch.tensor(b))[0].numpy()
    section = Section(
        everything,
        (Argument("a", (), 1), Argument("b", (), 1)),
        (Result(0, expected.shape[1]),),
        len(a),
    )
    source = emit.PRELUDE + emit.c_function("kernel", ("a", "b"), (section,), expected.size)
    build.compile_library(source, tmp_path / "kernel.so")
    found = np.empty(expected.shape)
    kernel = build.Library(tmp_path / "kernel.so").function("kernel", 3)
    kernel(a.ctypes.data, b.ctypes.data, found.ctypes.data)
    for name, one, other in zip(
        (*OF_ONE, *OF_TWO, "where", "isnan", "isfinite", "clamp"),
        found.T,
        expected.T,
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-14, atol=0, err_msg=name)


def operation_counts(eager):
    """Name of each kernel -> number of its scalar operations."""
    source = source_of(eager)
    bodies = re.split(r"^void (\w+)\(", source, flags=re.MULTILINE)[1:]
    return {
        name: body.count("const double t")
        for name, body in zip(bodies[::2], bodies[1::2], strict=True)
        if "const double t" in body  # the rest of newton.c has none of a problem's own
    }


def robot_derivatives(robot, **given):
    controller = build_controller(Config({"robot": robot, "horizon": 4, **given}))
    return EagerEvaluator(controller.transcription)


#: Scalar operations of a bicycle's kernels, with a tenth to spare.
MOST_OPERATIONS = {
    "system": 2200,
    "newton_bounds": 330,
    "merit": 1060,
    "rollout": 215,
    "cost_curvature": 26,
    "dynamics": 20,
}


def test_the_code_is_as_short_as_it_was():
    found = operation_counts(robot_derivatives("bicycle"))
    assert found.keys() == MOST_OPERATIONS.keys()
    for name, most in MOST_OPERATIONS.items():
        assert 0.5 * most < found[name] <= most, name


def test_the_code_does_not_grow_with_the_horizon():
    short, long = (robot_derivatives("unicycle", horizon=n) for n in (3, 300))
    assert operation_counts(short) == operation_counts(long)


def test_the_same_problem_has_the_same_source():
    """Or its library would be built again and again."""
    one, other = (source_of(robot_derivatives("cartpole")) for _ in range(2))
    assert one == other


def test_a_function_that_is_too_long_is_refused_or_left_to_another_process(libraries, monkeypatch):
    eager = EagerEvaluator(Transcription(bicycle().problem, "rk4"))
    monkeypatch.setattr(compiled_module, "LOOKED_UP", 100)
    with pytest.raises(NotBuilt, match="more than 100 operations in one stage") as missing:
        compile_evaluator(eager, libraries, build=False)
    assert missing.value.build is None
    monkeypatch.setattr(compiled_module, "LONGEST", 100)
    with pytest.raises(UnsupportedOperation, match=r"more than 100 .* fewer substeps"):
        compile_evaluator(eager, libraries)


def test_a_library_of_equal_sizes_but_other_parameters_is_refused(libraries):
    first, other = (
        EagerEvaluator(Transcription(double_integrator(parameters=shapes).problem, "euler"))
        for shapes in ({"a": (3,), "b": (1,)}, {"a": (1,), "b": (3,)})
    )
    library = compile_evaluator(first, libraries).library
    with pytest.raises(ValueError, match="belongs to another problem"):
        compiled_evaluator(other, library)


def test_a_library_of_another_problem_is_refused(machine):
    (_, one), (_, other) = problem_of("unicycle"), problem_of("bicycle")
    with pytest.raises(ValueError, match="belongs to another problem"):
        compiled_evaluator(other, machine(one).library)


def test_only_the_stagewise_recovery_can_be_compiled(libraries):
    _, eager = problem_of("tangled")
    with pytest.raises(ValueError, match="only 'stagewise'"):
        compile_evaluator(EagerEvaluator(eager.transcription, recovery="direct"), libraries)


def test_what_the_compiler_gets_wrong_is_found(monkeypatch, libraries):
    """Before anything is controlled by it."""
    _, eager = problem_of("double_integrator")
    right = emit.c_function
    monkeypatch.setattr(
        emit, "c_function", lambda *a, **k: right(*a, **k).replace("(0.1)", "(0.100001)")
    )
    with pytest.raises(ValueError, match=r"compiled and eager .* differ by"):
        compile_evaluator(eager, libraries)


def test_a_library_with_wrong_results_is_rebuilt_at_the_next_start(monkeypatch, tmp_path):
    _, eager = problem_of("double_integrator")
    right = cache_module.compile_library

    def wrong(text, path, started=None):
        assert "(0.1)" in text
        right(text.replace("(0.1)", "(0.100001)"), path, started)

    first, next_start = tmp_path / "first", tmp_path / "next"
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "compile_library", wrong)
        with pytest.raises(ValueError, match=r"compiled and eager .* differ by"):
            compile_evaluator(eager, LibraryCache(first))
    assert not list(first.iterdir())
    with pytest.raises(OSError, match=r"gave wrong results .*restart"):
        compile_evaluator(eager, LibraryCache(first))
    # The loader knows a library by its path and inode: another folder stands for a new process.
    first.rename(next_start)
    compile_evaluator(eager, LibraryCache(next_start))
    assert len(list(next_start.glob("*.so"))) == 1


def test_merits_are_numbers(machine):
    case, eager = problem_of("unicycle")
    point, data = random_iterate(eager, case), case.data(eager.transcription)
    merit = machine(eager).merit(point.z, point.multipliers, 0.1, data, mixed(eager))
    assert all(type(getattr(merit, field.name)) is float for field in fields(Merit))
    assert type(machine(eager).system(point, data, mixed(eager, 1.0)).barrier) is float
