# SPDX-License-Identifier: Apache-2.0
"""Keeps the problem that a loop solves, and its derivatives, in step with the newest parameters.

What a change needs is made aside while the loop drives on with what it has; the loop goes over
between two cycles.
"""

from __future__ import annotations

from typing import Any

from rclpy.impl.rcutils_logger import RcutilsLogger

from mpc_banded.codegen.cache import NotBuilt
from mpc_banded.codegen.trace import UnsupportedOperation
from mpc_banded.control import background
from mpc_banded.control.background import Compilation, CompilationFailed
from mpc_banded.control.build import build_controller
from mpc_banded.control.config import Config
from mpc_banded.control.loop import ControlLoop
from mpc_banded.ocp.controller import RecedingHorizonController


class Renewal:
    """Renews the controller of a loop.

    Args:
        loop: Whose controller it is.
        log: Is told of every change.

    Attributes:
        derivatives: Which ones are in use, eager or compiled.
    """

    def __init__(self, loop: ControlLoop, log: RcutilsLogger) -> None:
        self._loop, self._log = loop, log
        self._wanted = loop.config
        self._compilation: Compilation | None = None
        self._compiling = loop.config
        self._ending: list[Compilation] = []
        self._may_compile = bool(loop.config.parameters.compile)
        self.derivatives = "eager"
        if self._may_compile:
            self._take_from_cache()

    @property
    def under_way(self) -> str:
        """What is being made aside, in words; empty if nothing is."""
        if self._wanted is not self._loop.config:
            return "a change of parameters is being built while the old problem drives on"
        return "the derivatives are being compiled" if self._compilation is not None else ""

    def want(self, config: Config, updates: dict[str, Any]) -> None:
        """Go over to a configuration, soon; the newest one counts.

        Args:
            config: Complete.
            updates: What of it is new.
        """
        if self._wanted is not self._loop.config and not self._wanted.rebuilds(config):
            # It need not wait for what was set before it.
            self._loop.adopt(self._loop.config.changed(updates))
        self._wanted = config

    def poll(self) -> None:
        """Go over to what is ready; called between two cycles."""
        self._ending = [each for each in self._ending if not _ended(each)]
        if self._compilation is None and self._wanted is self._loop.config:
            return
        try:
            if self._wanted is not self._loop.config:
                self._approach(self._wanted)
            if self._compilation is not None:
                self._use_compiled(self._compilation)
        except (ValueError, ArithmeticError) as error:
            self._log.error(f"a change of parameters was refused while it was built: {error}")
            self._wanted = self._loop.config

    def close(self) -> None:
        """End what is being made."""
        self._drop()
        for each in self._ending:
            each.close()
        self._ending = []

    def _drop(self) -> None:
        """What is being made is not wanted any more; nobody waits for its end."""
        if self._compilation is not None:
            self._ending.append(self._compilation)
            self._compilation.cancel()
            self._compilation = None

    def _take_from_cache(self) -> None:
        try:
            try:
                self._loop.controller.compile(build=False)
            except NotBuilt as missing:
                self._compile(self._loop.config, missing)
            else:
                self._now_compiled("from the cache")
        except (UnsupportedOperation, OSError, ValueError) as error:
            self._stay_eager(error)

    def _approach(self, wanted: Config) -> None:
        loop = self._loop
        if not loop.config.rebuilds(wanted):
            loop.adopt(wanted)
            return
        library = loop.controller.library
        if library is None:
            self._go_over(wanted, build_controller(wanted), "with eager derivatives")
            if self._may_compile and self._compiling.rebuilds(wanted):
                self._compile(wanted)
            return
        controller = build_controller(wanted)
        try:
            controller.load(library)  # many a change leaves the derivatives what they are
        except (OSError, ValueError):
            if self._compilation is None or self._compiling.rebuilds(wanted):
                self._compile(wanted)
            return
        self._drop()
        self._go_over(wanted, controller, "with the library in use")

    def _compile(self, config: Config, missing: NotBuilt | None = None) -> None:
        self._drop()
        self._compiling = config
        try:
            self._compilation = background.begin(config, missing)
        except OSError as error:
            self._stay_eager(error)

    def _use_compiled(self, compilation: Compilation) -> None:
        """Take what has been compiled, once it is there."""
        try:
            library = compilation.poll()
            if library is None:
                return
            how = f"after {compilation.elapsed_s:.1f} s"
            if self._wanted is self._loop.config:
                self._loop.controller.load(library)
                self._now_compiled(how)
            else:
                controller = build_controller(self._wanted)
                controller.load(library)
                self._go_over(self._wanted, controller, how)
                self._now_compiled(how)
        except (CompilationFailed, OSError, ValueError) as error:
            self._stay_eager(error)
        for remark in compilation.remarks:
            self._log.info(f"the compiler said: {remark}")
        self._drop()

    def _go_over(self, config: Config, controller: RecedingHorizonController, how: str) -> None:
        self._loop.adopt(config, controller)
        self._log.info(f"the new problem drives, {how}")

    def _now_compiled(self, how: str) -> None:
        self.derivatives = "compiled"
        self._log.info(f"derivatives are compiled, {how}: {self._loop.controller.library}")

    def _stay_eager(self, error: Exception) -> None:
        self._may_compile = False
        self.derivatives = "eager"
        if self._wanted is not self._loop.config:
            self._loop.adopt(self._wanted, build_controller(self._wanted))
        self._log.warning(
            f"derivatives stay eager, so solves take longer; they are not compiled: {error}"
        )


def _ended(compilation: Compilation) -> bool:
    """Whether it has come to its end, and is closed."""
    if not compilation.cancel():
        return False
    compilation.close()
    return True
