# SPDX-License-Identifier: Apache-2.0
"""Builds the optimal control problem and the controller of a configuration."""

from __future__ import annotations

from mpc_banded.control.config import Config
from mpc_banded.ocp.controller import RecedingHorizonController
from mpc_banded.ocp.problem import OptimalControlProblem
from mpc_banded.ocp.transcription import Transcription


def build_problem(config: Config) -> OptimalControlProblem:
    """Return the optimal control problem."""
    parameters = config.parameters
    return config.robot.problem(
        config.horizon,
        config.dt,
        parameters.weights,
        parameters.limits,
        config.obstacle_slots,
        len(config.footprint.radii),
    )


def build_transcription(config: Config) -> Transcription:
    """Return the transcription, which knows the half bandwidth derived from the couplings."""
    return Transcription(build_problem(config), config.transcription, config.parameters.substeps)


def build_controller(config: Config) -> RecedingHorizonController:
    """Return the controller, not yet checked against its functions."""
    parameters = config.parameters
    return RecedingHorizonController(
        build_problem(config), config.transcription, parameters.substeps, parameters.solver
    )
