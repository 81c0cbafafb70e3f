# SPDX-License-Identifier: Apache-2.0
"""The gates of a cycle: each one decides what the robot does now, or lets the cycle pass.

Gates stand before the solve and know the instant. Judges stand behind it and know the solve as
well. The first one that returns a decision ends the cycle; a cycle that passes them all drives. To
add one, write a class like those below, add it to its list in ``ControlLoop``, and if none of
``Reason`` in ``control.tick`` fits, a reason there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mpc_banded.control import explain
from mpc_banded.control.arrival import GoalChecker, GoalTolerance, ProgressChecker
from mpc_banded.control.config import Config
from mpc_banded.control.dubins import Pose
from mpc_banded.control.errors import UserCodeError, user_code
from mpc_banded.control.fallback import Fallback
from mpc_banded.control.horizon import KEPT, REACTION_S, Horizon
from mpc_banded.control.legs import base_of
from mpc_banded.control.limiter import Limiter
from mpc_banded.control.obstacles import Obstacles
from mpc_banded.control.path import LegReference, PathReference
from mpc_banded.control.reference import inner
from mpc_banded.control.state import CLOCKS, StateEstimate, StuckCheck
from mpc_banded.control.tick import Instant, Reason, Tick
from mpc_banded.control.tracker import Tracker
from mpc_banded.ocp.controller import CommandSource, ControlStep
from mpc_banded.ocp.problem import OptimalControlProblem, Trajectory
from mpc_banded.ocp.solver import Status
from mpc_banded.robots import Robot

#: Solves that end like this give no command.
FAILED = (Status.LINE_SEARCH_FAILED, Status.NOT_POSITIVE_DEFINITE, Status.NON_FINITE)
#: Longest wait for the first plan to converge, if there is a deadline, in ns.
FIRST_PLAN_NS = 2_000_000_000
#: Age in s beyond which the state probably comes from another clock.
OTHER_CLOCK_S = 10.0
#: Poses of a goal that differ by less than this are the same, in m and rad: noise of a planner.
SAME_GOAL = 0.05
#: Overlap of a plan and an obstacle that counts as none, in m.
TOUCHING = 0.01
#: A plan whose first SOON seconds turn less than THERE in rad, and cover less than the share
#: NOWHERE of the way to the end of the reference, goes nowhere; a robot nearer to it than THERE in
#: m has come there. A blocked robot goes on once a whole plan covers the share CLEARLY.
SOON_S, THERE, NOWHERE, CLEARLY = 0.5, 0.1, 0.05, 0.5
#: Time in s for which plans go nowhere until the robot is blocked.
HELD_S = 2.0
#: Time in s that a robot without progress stands until it tries again.
RETRY_S = 2.0
#: Longest pause between two checks for progress that belong together, in ns.
PAUSE_NS = 1_000_000_000


@dataclass(frozen=True)
class Solve:
    """The solve of one cycle.

    Attributes:
        step: The controller's step.
        parameters: Parameters of the problem; "reference" (N + 1, columns), ...
        problem: The problem that was solved.
        weights: Weight of each cost.
    """

    step: ControlStep
    parameters: dict[str, Any]
    problem: OptimalControlProblem
    weights: Mapping[str, float]


#: Returns a decision, or None to let the cycle pass.
Gate = Callable[[Instant], Tick | None]
Judge = Callable[[Instant, Solve], Tick | None]


class StateKnown:
    """Waits for the first state."""

    def __init__(self, robot: Robot, estimate: StateEstimate, fallback: Fallback) -> None:
        self._robot, self._estimate, self._fallback = robot, estimate, fallback

    def __call__(self, instant: Instant) -> Tick | None:
        """Return a stop, or None."""
        if self._estimate.state is not None:
            return None
        topics = " and ".join(self._estimate.silent or (self._robot.state_topics[0].topic,))
        why = f"waiting for the first {topics}{self._estimate.last_rejection}"
        return self._fallback.wait(instant, Reason.NO_STATE, why)


class StateFresh:
    """Falls back if the state is too old, or lies in the future."""

    def __init__(self, config: Config, estimate: StateEstimate, fallback: Fallback) -> None:
        self._estimate, self._fallback = estimate, fallback
        self.adopt(config)

    def adopt(self, config: Config) -> None:
        """Take over another configuration."""
        self._longest_s = config.parameters.max_state_age

    def __call__(self, instant: Instant) -> Tick | None:
        """Return a fallback, or None."""
        age_s, longest_s = instant.state_age_s, self._longest_s
        if 0.0 <= age_s <= longest_s:
            return None
        if age_s < 0.0:
            why = f"the clock went back to {-age_s:.2f} s before the state"
        else:
            hint = f"; {CLOCKS}" if age_s > OTHER_CLOCK_S else ""
            why = (
                f"the state is {age_s:.2f} s old, max_state_age is {longest_s:g} s{hint}"
                f"{self._estimate.last_rejection}"
            )
        return self._fallback.fall_back(instant, why)


class ReferenceKnown:
    """Waits for a reference."""

    def __init__(self, tracker: Tracker, fallback: Fallback) -> None:
        self._tracker, self._fallback = tracker, fallback

    def __call__(self, instant: Instant) -> Tick | None:
        """Return a stop, or None."""
        if self._tracker.reference is not None:
            return None
        why = f"waiting for {self._tracker.awaited}"
        if self._tracker.rejected:
            why += f"; the last one was rejected: {self._tracker.rejected}"
        return self._fallback.wait(instant, Reason.NO_REFERENCE, why)


class NotStuck:
    """Falls back if the state stays the same although the commands should have changed it."""

    def __init__(self, estimate: StateEstimate, stuck: StuckCheck, fallback: Fallback) -> None:
        self._estimate, self._stuck, self._fallback = estimate, stuck, fallback

    def __call__(self, instant: Instant) -> Tick | None:
        """Return a fallback, or None."""
        estimate = self._estimate
        if estimate.state is None:
            return None
        why = self._stuck.check(
            estimate.state, estimate.changed_ns, instant.now_ns, instant.effect_ns
        )
        return self._fallback.fall_back(instant, why) if why else None


class FirstPlan:
    """Keeps the robot standing until its first plan has converged, if there is a deadline.

    Attributes:
        effect_ns: When the command of the newest solve takes effect; None before the first plan.
    """

    def __init__(self, fallback: Fallback) -> None:
        self._fallback = fallback
        self.reset()

    def reset(self) -> None:
        """Start again without a plan."""
        self.effect_ns: int | None = None
        self._begun_ns: int | None = None

    def __call__(self, instant: Instant, solve: Solve) -> Tick | None:
        """Return a stop, or None."""
        if self.effect_ns is None and self._is_planning(instant, solve.step):
            why = f"planning, KKT residual {solve.step.kkt_residual:.1e} so far"
            return self._fallback.wait(instant, Reason.PLANNING, why)
        self.effect_ns = instant.effect_ns
        return None

    def elapsed_s(self, instant: Instant) -> float:
        """Return the time since the newest solve; zero before the first plan, while it stands."""
        if self.effect_ns is None:
            return 0.0
        return max(0.0, 1e-9 * (instant.effect_ns - self.effect_ns))

    def _is_planning(self, instant: Instant, step: ControlStep) -> bool:
        if self._begun_ns is None:
            self._begun_ns = instant.now_ns
        waited = instant.now_ns - self._begun_ns >= FIRST_PLAN_NS
        has_deadline = instant.deadline_s is not None
        return has_deadline and not waited and step.status is not Status.CONVERGED


class SolveUsable:
    """Falls back if the solve failed."""

    def __init__(self, fallback: Fallback) -> None:
        self._fallback = fallback

    def __call__(self, instant: Instant, solve: Solve) -> Tick | None:
        """Return a fallback, or None."""
        step = solve.step
        if step.source is CommandSource.SOLUTION and step.status not in FAILED:
            return None
        return self._fallback.fall_back(instant, f"the solve failed: {step.status.value}")


class ObstaclesKnown:
    """Stops the robot if a source of obstacles sends no more messages."""

    def __init__(self, obstacles: Obstacles, fallback: Fallback) -> None:
        self._obstacles, self._fallback = obstacles, fallback

    def __call__(self, instant: Instant) -> Tick | None:
        """Return a stop, or None."""
        why = self._obstacles.trouble(instant.now_ns)
        return self._fallback.wait(instant, Reason.BLIND, why) if why else None


class NotArrived:
    """Holds the stop once the robot has arrived at the end of its reference."""

    def __init__(
        self, config: Config, estimate: StateEstimate, tracker: Tracker, fallback: Fallback
    ) -> None:
        self._estimate, self._tracker, self._fallback = estimate, tracker, fallback
        self._goal: Pose | None = None
        self._errands = 0
        self._checker = GoalChecker(self._tolerance(config))

    @staticmethod
    def _tolerance(config: Config) -> GoalTolerance:
        parameters = config.parameters
        return GoalTolerance(
            parameters.xy_goal_tolerance,
            parameters.yaw_goal_tolerance,
            parameters.trans_stopped_velocity,
            parameters.rot_stopped_velocity,
        )

    def adopt(self, config: Config) -> None:
        """Take over another configuration."""
        self._checker.tolerance = self._tolerance(config)

    def __call__(self, instant: Instant) -> Tick | None:
        """Return a stop, or None."""
        reference, values = self._tracker.reference, self._estimate.values
        goal = getattr(reference, "goal", None)
        self._tracker.has_arrived = False
        if reference is None or not values or goal is None:
            return None
        is_new = self._errands != self._tracker.errands
        if is_new or self._goal is None or not _is_same(goal, self._goal):
            self._goal, self._errands = goal, self._tracker.errands
            self._checker.reset()
        ended = reference.ended(1e-9 * instant.effect_ns)
        path = inner(reference)
        left = 0.0
        if isinstance(path, PathReference):
            left = path.length - (path.progress or 0.0)
        if not self._checker.check(goal, values, ended, instant.now_ns, left):
            return None
        self._tracker.has_arrived = True
        x, y, yaw = goal
        facing = math.degrees(math.remainder(yaw, math.tau))
        why = f"arrived at ({x:.2f}, {y:.2f}) facing {facing:.0f} degrees"
        return self._fallback.wait(instant, Reason.ARRIVED, why)


def _is_same(goal: Pose, known: Pose) -> bool:
    turned = abs(math.remainder(goal[2] - known[2], math.tau))
    return math.dist(goal[:2], known[:2]) <= SAME_GOAL and turned <= SAME_GOAL


class CanFollow:
    """Stops a car in front of a path that leads away behind it, and says so."""

    def __init__(self, tracker: Tracker, fallback: Fallback) -> None:
        self._tracker, self._fallback = tracker, fallback

    def __call__(self, instant: Instant) -> Tick | None:
        """Return a stop, or None."""
        why = self._tracker.trouble()
        return self._fallback.wait(instant, Reason.BLOCKED, why) if why else None


class PlanClear:
    """Brakes before obstacles that the next metres of the plan would touch."""

    def __init__(self, config: Config, horizon: Horizon, fallback: Fallback) -> None:
        self._horizon, self._fallback = horizon, fallback
        self.adopt(config)

    def adopt(self, config: Config) -> None:
        """Take over another configuration."""
        self._base = base_of(config.robot, config.parameters)

    def __call__(self, instant: Instant, solve: Solve) -> Tick | None:
        """Return a stop, or None."""
        ahead, plan = self._horizon.ahead, solve.step.plan
        if ahead is None or ahead.is_empty:
            return None
        stages = 1 + math.ceil(self._braking_s(plan) / plan.dt)
        gap, circle = ahead.worst(self._horizon.planar.poses(plan.states[:stages]))
        if gap >= -TOUCHING:
            return None
        why = f"{_named(circle)} is in the way"
        return self._fallback.wait(instant, Reason.BLOCKED, why)

    def _braking_s(self, plan: Trajectory) -> float:
        here, there = self._horizon.planar.positions(plan.states[:2])
        speed = np.linalg.norm(there - here) / plan.dt
        return REACTION_S + float(speed) / max(self._base.limits.acceleration, 1e-3)


class LeadsOn:
    """Stops before an obstacle that lies on the reference, if no plan leads on."""

    def __init__(self, horizon: Horizon, fallback: Fallback) -> None:
        self._horizon, self._fallback = horizon, fallback
        self._since_ns: int | None = None  # when plans began to go nowhere
        self._is_blocked = False

    def __call__(self, instant: Instant, solve: Solve) -> Tick | None:
        """Return a stop, or None."""
        ahead, wanted, now_ns = self._horizon.ahead, self._horizon.wanted, instant.now_ns
        circle = None
        if ahead is not None and wanted is not None and not self._leads_on(solve, wanted):
            gap, nearest = ahead.worst(wanted, may_leave=False)
            circle = nearest if gap < KEPT else None
        if circle is None or self._since_ns is None or now_ns < self._since_ns:
            self._since_ns = None if circle is None else now_ns
        since_ns = now_ns if self._since_ns is None else self._since_ns
        self._is_blocked = 1e-9 * (now_ns - since_ns) >= HELD_S
        if circle is None or not self._is_blocked:
            return None
        why = f"{_named(circle)} is in the way, and no plan leads around it"
        return self._fallback.wait(instant, Reason.BLOCKED, why)

    def _leads_on(self, solve: Solve, wanted: np.ndarray) -> bool:
        """Return whether the robot is where it was sent, or its plan gets it on."""
        plan = solve.step.plan
        poses = self._horizon.planar.poses(plan.states)
        away = math.dist(wanted[-1, :2], poses[0, :2])
        moved = np.linalg.norm(poses[:, :2] - poses[0, :2], axis=1)
        if away <= THERE or self._is_blocked:
            return bool(away <= THERE or moved.max() > CLEARLY * away)
        # Beyond its first stages a plan may put off what it never does.
        soon = slice(1 + math.ceil(SOON_S / plan.dt))
        turned = np.abs(poses[soon, 2] - poses[0, 2]).max()
        return bool(moved[soon].max() > NOWHERE * away or turned > THERE)


def _named(circle: tuple[float, float, float]) -> str:
    x, y, radius = circle
    return f"an obstacle at ({x:.2f}, {y:.2f}) with a radius of {radius:.2f} m"


class Progressing:
    """Stops a robot that makes no progress, and lets it try again after a while."""

    def __init__(
        self, config: Config, estimate: StateEstimate, tracker: Tracker, fallback: Fallback
    ) -> None:
        self._robot, self._estimate = config.robot, estimate
        self._tracker, self._fallback = tracker, fallback
        self._checker = ProgressChecker(0.0, 0.0)
        self._asked_ns = self._errands = 0
        self.adopt(config)

    def adopt(self, config: Config) -> None:
        """Take over another configuration."""
        parameters = config.parameters
        self._radius = parameters.required_movement_radius
        self._angle = parameters.required_movement_angle
        self._allowance_s = parameters.movement_time_allowance
        self._is_meant_to_move = parameters.reference_speed > 0.0

    def __call__(self, instant: Instant, solve: Solve) -> Tick | None:
        """Return a stop, or None."""
        del solve
        state, now_ns = self._estimate.state, instant.now_ns
        planar = self._robot.planar
        path = inner(self._tracker.reference)
        if state is None or planar is None or not self._is_meant_to_move:
            return None
        if not isinstance(path, LegReference):
            return None
        self._require(path)
        is_new = self._errands != self._tracker.errands
        if is_new or not 0 <= now_ns - self._asked_ns <= PAUSE_NS:
            self._checker.reset()  # meanwhile another gate stopped the robot
        self._asked_ns, self._errands = now_ns, self._tracker.errands
        idle_s = self._checker.idle_s(planar.pose(state), now_ns)
        if idle_s <= self._allowance_s:
            return None
        if idle_s > self._allowance_s + RETRY_S:
            self._checker.reset()
            return None
        why = (
            f"no move of {self._checker.radius:g} m and no turn of {self._checker.angle:g} rad in "
            f"{self._allowance_s:g} s, movement_time_allowance"
        )
        return replace(self._fallback.wait(instant, Reason.BLOCKED, why), stalled=True)

    def _require(self, path: LegReference) -> None:
        """Require no more than half of what the base may move in the time that it is allowed."""
        limits = path.base.limits
        fastest = min(path.speed, limits.forward, limits.backward or math.inf)
        half_s = 0.5 * self._allowance_s
        self._checker.radius = min(self._radius, fastest * half_s)
        self._checker.angle = min(self._angle, limits.turn_rate * half_s)


class Drive:
    """Sends the command of a usable solve; it stands behind all judges and always decides."""

    def __init__(
        self,
        robot: Robot,
        estimate: StateEstimate,
        tracker: Tracker,
        limiter: Limiter,
        fallback: Fallback,
    ) -> None:
        self._robot, self._estimate, self._tracker = robot, estimate, tracker
        self._limiter, self._fallback = limiter, fallback

    def __call__(self, instant: Instant, solve: Solve) -> Tick:
        """Return the command of the plan, and keep the plan; a fallback if there is none."""
        step, reference = solve.step, self._tracker.reference
        try:
            command = self._limiter.command_of(step.plan, speed=self._tracker.top_speed)
        except UserCodeError as error:
            return replace(self._fallback.fall_back(instant, str(error)), step=step)
        self._fallback.keep_plan(step.plan, instant.effect_ns)
        with user_code("the plan cannot be explained"):
            held = explain.held(
                self._robot, solve.problem, solve.weights, step.plan, solve.parameters
            )
            has_ended = bool(reference and reference.ended(1e-9 * instant.effect_ns))
        reason = explain.driving(step, held, has_ended, self._estimate.remark)
        return instant.tick(command, Reason.DRIVING, reason, step, bool(held))
