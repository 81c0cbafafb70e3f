# SPDX-License-Identifier: Apache-2.0
"""Rebuilds the controller of a loop after a change of parameters, while the loop drives on.

A change that is built into the problem needs another controller, and perhaps another compiled
library. Both are prepared beside the loop, which switches to them between two cycles. A loop that
drives on compiled derivatives never goes back to eager ones: a change that cannot be compiled is
refused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from mpc_banded.codegen.cache import NotBuilt
from mpc_banded.codegen.trace import UnsupportedOperation
from mpc_banded.control import background
from mpc_banded.control.background import Compilation
from mpc_banded.control.build import build_controller
from mpc_banded.control.config import Config
from mpc_banded.control.loop import ControlLoop
from mpc_banded.control.parameters import REBUILDING
from mpc_banded.ocp.compiled import compile_evaluator, load_evaluator
from mpc_banded.ocp.controller import RecedingHorizonController


class Log(Protocol):
    """Receives messages; loggers of Python and of ROS fit."""

    def info(self, message: str) -> Any:
        """Write a message."""

    def warning(self, message: str) -> Any:
        """Write a warning."""

    def error(self, message: str) -> Any:
        """Write an error."""


class Rebuild:
    """Keeps the controller of a loop, and its compiled derivatives, up to date.

    Args:
        loop: The control loop.
        log: Receives a message on every change.

    Attributes:
        refused: Why the last change that needed a rebuild was refused; empty if it was not.
        revert: Called with the configuration in use after a change was refused; may be None.
    """

    def __init__(self, loop: ControlLoop, log: Log) -> None:
        self._loop, self._log = loop, log
        self._wanted = loop.config
        #: Controller of the wanted configuration, waiting for its library.
        self._candidate: RecedingHorizonController | None = None
        self._compilation: Compilation | None = None
        self._ending: list[Compilation] = []
        self.refused = ""
        self.revert: Callable[[Config], None] | None = None
        if loop.config.parameters.compile:
            self._look_in_cache()

    @property
    def derivatives(self) -> str:
        """Derivatives in use, ``eager`` or ``compiled``."""
        return "eager" if self._loop.controller.library is None else "compiled"

    @property
    def under_way(self) -> str:
        """Sentence on the present preparation; empty if there is none."""
        if self._wanted is not self._loop.config:
            return "a change of parameters is being built while the old problem drives on"
        return "the derivatives are being compiled" if self._compilation is not None else ""

    def want(self, config: Config, updates: dict[str, Any]) -> None:
        """Ask for a configuration; the newest request counts.

        Args:
            config: The complete configuration.
            updates: What of it is new.
        """
        if any(key.startswith(REBUILDING) for key in updates):
            self._withdraw()
            self._wanted = config
            return
        # These need no rebuild, so they do not wait for one, nor for one that was refused.
        waits = self._wanted is not self._loop.config
        self._loop.adopt(self._loop.config.changed(updates))
        self._wanted = config if waits else self._loop.config

    def poll(self) -> None:
        """Switch to what is ready; call it between two cycles."""
        self._ending = [each for each in self._ending if not _has_ended(each)]
        if self._compilation is None and self._wanted is self._loop.config:
            return
        try:
            if self._wanted is not self._loop.config and self._candidate is None:
                self._prepare(self._wanted)
            if self._compilation is not None and (library := self._compilation.poll()):
                self._use(library, self._compilation)
        except Exception as error:  # functions of the robot may raise anything
            self._give_up(error)

    def close(self) -> None:
        """End all compilations."""
        self._drop_compilation()
        for each in self._ending:
            each.close()
        self._ending = []

    def _look_in_cache(self) -> None:
        controller = self._loop.controller
        try:
            controller.evaluator = compile_evaluator(controller.evaluator, build=False)
            self._log_compiled("from the cache")
        except NotBuilt as missing:
            self._compile(self._loop.config, missing)
        except (UnsupportedOperation, OSError, ValueError) as error:
            self._give_up(error)

    def _prepare(self, wanted: Config) -> None:
        """Build the wanted controller once, and switch to it if it needs no compiler."""
        loop = self._loop
        if not loop.config.rebuilds(wanted):
            loop.adopt(wanted)
            self.refused = ""
            return
        candidate = build_controller(wanted)
        library = loop.controller.library
        if library is None:
            self._switch(candidate, "with eager derivatives")
            if wanted.parameters.compile:
                self._compile(wanted)
            return
        try:
            # Many changes leave the derivatives as they are.
            candidate.evaluator = load_evaluator(candidate.evaluator, library)
        except (OSError, ValueError):
            self._candidate = candidate
            self._compile(wanted)
        else:
            self._switch(candidate, "with the library in use")

    def _compile(self, config: Config, missing: NotBuilt | None = None) -> None:
        self._drop_compilation()
        try:
            self._compilation = background.begin(config, missing)
        except OSError as error:
            self._give_up(error)

    def _use(self, library: Path, compilation: Compilation) -> None:
        """Use the library that has been compiled."""
        how = f"after {compilation.elapsed_s:.1f} s"
        controller = self._candidate or self._loop.controller
        controller.evaluator = load_evaluator(controller.evaluator, library)
        if self._candidate is not None:
            self._switch(self._candidate, how)
        self._log_compiled(how)
        self._end_compilation(compilation)

    def _switch(self, controller: RecedingHorizonController, how: str) -> None:
        # Weights may have changed while it was built.
        controller.set_weights(self._wanted.parameters.weights)
        self._loop.adopt(self._wanted, controller)
        self._candidate, self.refused = None, ""
        self._log.info(f"the new problem drives, {how}")

    def _give_up(self, error: Exception) -> None:
        """Refuse the wanted change, or stay with eager derivatives."""
        if self._compilation is not None:
            self._end_compilation(self._compilation)
        if self._wanted is self._loop.config:
            self._log.warning(
                f"derivatives stay eager, so solves take longer; they are not compiled: {error}"
            )
            return
        self.refused = f"a change of parameters was refused while it was built: {error}"
        self._log.error(f"{self.refused}; the old problem drives on")
        self._withdraw()
        if self.revert is not None:
            self.revert(self._loop.config)

    def _withdraw(self) -> None:
        """Want what drives."""
        if self._wanted is not self._loop.config:
            self._drop_compilation()
        self._wanted, self._candidate = self._loop.config, None

    def _end_compilation(self, compilation: Compilation) -> None:
        for remark in compilation.remarks:
            self._log.info(f"the compiler said: {remark}")
        self._drop_compilation()

    def _drop_compilation(self) -> None:
        """Cancel the compilation without waiting for its end."""
        if self._compilation is not None:
            self._ending.append(self._compilation)
            self._compilation.cancel()
            self._compilation = None

    def _log_compiled(self, how: str) -> None:
        self._log.info(f"derivatives are compiled, {how}: {self._loop.controller.library}")


def _has_ended(compilation: Compilation) -> bool:
    """Return whether a cancelled compilation has ended; it is closed then."""
    if not compilation.cancel():
        return False
    compilation.close()
    return True
