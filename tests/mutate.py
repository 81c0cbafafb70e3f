# SPDX-License-Identifier: Apache-2.0
"""Changes the package in one place at a time, and lists the changes that no test notices.

``make mutate`` runs it; docs/testing.md says what it found. No file is touched. A mutant lives in
a forked process that has loaded torch and collected the tests already, so it costs the tests that
run its line, fastest first, until one fails. What runs when a module is imported (defaults,
constants, tables), and what survived, is changed by the loader instead, in a process that imports
the package anew.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import fnmatch
import functools
import gc
import importlib
import importlib.machinery
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
import types
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mpc_banded"
#: Pattern of modules -> tests that state their laws; the first match counts.
TESTS = {
    "control/parameters.py": "defaults config parameter_file checks",
    "control/parameter_file.py": "parameter_file config",
    "control/background.py": "background rebuild",
    "control/explain.py": "explain",
    "control/config.py": "config parameter_file user_code",
    "control/limiter.py": "limiter fallback loop",
    "control/motion.py": "simulation delay defaults",
    "control/obstacles.py": "obstacles defaults",
    "control/rebuild.py": "rebuild live_parameters",
    "control/record.py": "cycle loop",
    "control/state.py": "state stuck delay defaults",
    "control/fallback.py": "fallback limiter defaults",
    "control/arrival.py": "arrival goals loop_references",
    "control/gates.py": "loop fallback arrival stuck defaults",
    "control/speed.py": "reference path goals loop_references",
    "control/dubins.py": "path",
    "control/joints.py": "joint_space loop_references",
    "control/*path.py": "path reference loop_references arrival defaults",
    "control/*.py": "arrival fallback limiter loop loop_references path state stuck defaults",
    "robots/messages.py": "messages robots",
    "robots/joint_space.py": "models defaults robots joint_space",
    "robots/*.py": "models defaults robots config",
    "ocp/barrier.py": "barrier solver",
    "ocp/solver.py": "solver solver_status defaults",
}
MUTATED = ("control/", "robots/", "ocp/solver.py", "ocp/barrier.py")
#: Other libraries, loaded before the first process is forked.
LIBRARIES = ("hypothesis", "pytest", "scipy.integrate", "scipy.linalg", "torch.func", "yaml")
COMPARISONS = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.MatMult: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
EXTREMES = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Mutant:
    """One change of a module.

    Attributes:
        path: Of the module.
        lines: Those of the changed expression and the first of its statement.
        kind: "comparison", "arithmetic", "boolean", "constant", "extreme" or "return".
        text: What became what.
        at_import: Whether the change takes effect when the module is imported.
        code: The changed module, with the line numbers of the old one.
    """

    path: Path
    lines: frozenset[int]
    kind: str
    text: str
    at_import: bool
    code: types.CodeType

    def __str__(self) -> str:
        return f"{self.path.relative_to(PACKAGE)}:{min(self.lines)}: {self.kind}: {self.text}"


def alternatives(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield the kind of each change of a node, and what the node becomes."""
    if isinstance(node, ast.Compare):
        for at, operator in enumerate(node.ops):
            for other in COMPARISONS[type(operator)]:
                ops = [*node.ops[:at], other(), *node.ops[at + 1 :]]
                yield "comparison", ast.Compare(node.left, ops, node.comparators)
    elif isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)):
        other = OPERATORS.get(type(node.op))
        if other is not None and not _is_text(node):
            changed = copy.copy(node)
            changed.op = other()
            yield "boolean" if isinstance(node, ast.BoolOp) else "arithmetic", changed
    elif isinstance(node, ast.UnaryOp):
        yield "boolean" if isinstance(node.op, ast.Not) else "arithmetic", node.operand
    elif isinstance(node, ast.Name) and node.id in EXTREMES:
        yield "extreme", ast.Name(EXTREMES[node.id], node.ctx)
    elif isinstance(node, ast.Return) and node.value is not None:
        if not (isinstance(node.value, ast.Constant) and node.value.value is None):
            yield "return", ast.Return(ast.Constant(None))
    elif isinstance(node, (ast.If, ast.IfExp, ast.While)):
        if not isinstance(node.test, (ast.Compare, ast.UnaryOp)):
            changed = copy.copy(node)
            changed.test = ast.copy_location(ast.UnaryOp(ast.Not(), node.test), node.test)
            yield "boolean", changed
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield "constant", ast.Constant(not node.value)
        elif isinstance(node.value, int):
            yield "constant", ast.Constant(node.value + 1)
        elif isinstance(node.value, float):
            yield "constant", ast.Constant(1.5 * node.value if node.value else 1.0)


def _is_text(node: ast.AST) -> bool:
    parts = [node.left, node.right] if isinstance(node, ast.BinOp) else []
    return any(
        isinstance(part, ast.JoinedStr)
        or (isinstance(part, ast.Constant) and isinstance(part.value, str))
        for part in parts
    )


def sites(node: ast.AST, statement: int = 1, at_import: bool = True) -> Iterator[tuple]:
    """Yield (parent, field, index, node, line of its statement, at_import); no annotations."""
    is_function = isinstance(node, (ast.FunctionDef, ast.Lambda))
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "format_spec"):
            continue
        inside = at_import and not (is_function and name == "body")
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST):
                line = child.lineno if isinstance(child, ast.stmt) else statement
                yield node, name, index, child, line, inside
                yield from sites(child, line, inside)


def mutants(path: Path) -> Iterator[Mutant]:
    """Yield every change of a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for parent, name, index, node, statement, at_import in list(sites(tree)):
        for kind, other in alternatives(node):
            ast.copy_location(other, node)
            old = ast.unparse(node).splitlines()[0]
            text = f"{old} -> {ast.unparse(other).splitlines()[0]}"
            _put(parent, name, index, other)
            with contextlib.suppress(SyntaxError, ValueError):  # such as two patterns that clash
                code = compile(ast.fix_missing_locations(tree), str(path), "exec")
                last = node.lineno if isinstance(node, ast.stmt) else node.end_lineno
                lines = frozenset({statement, *range(node.lineno, last + 1)})
                yield Mutant(path, lines, kind, text, at_import, code)
            _put(parent, name, index, node)


def _put(parent: ast.AST, name: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(parent, name, node)
    else:
        getattr(parent, name)[index] = node


def tests_of(path: Path) -> list[str]:
    """Return the test files that state the laws of a module."""
    inside = path.relative_to(PACKAGE).as_posix()
    names = next(tests for pattern, tests in TESTS.items() if fnmatch.fnmatch(inside, pattern))
    files = [ROOT / "tests" / f"test_{name}.py" for name in names.split()]
    return [str(file) for file in files if file.exists()]


class Trial:
    """Plugin of pytest that runs the tests of one module in an order of its own.

    Args:
        path: The module.
        seconds: How much of the tests' time a mutant may cost.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.seconds = path, seconds
        self.failed = False
        self.times: dict[str, float] = {}
        self.lines: dict[str, set[int]] = defaultdict(set)

    def pytest_collection(self) -> None:
        """Have hypothesis report the first example that fails, without a smaller one."""
        from hypothesis import Phase, settings

        phases = (Phase.explicit, Phase.generate)
        settings.register_profile("mutation", settings(), phases=phases)
        settings.load_profile("mutation")

    def pytest_runtest_logreport(self, report) -> None:
        self.failed |= report.failed

    def run(self, items) -> bool:
        """Run tests until one fails; whether all pass."""
        for item in items:
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            if self.failed:
                return False
        return True

    def watch(self, items) -> None:
        """Run all tests; note how long each takes and which lines of the module it runs."""
        name = str(self.path)
        for item, following in zip(items, [*items[1:], None], strict=True):
            seen = self.lines[item.nodeid]

            def local(frame, _event, _argument, seen=seen):
                seen.add(frame.f_lineno)
                return local

            def called(frame, event, argument, local=local):
                return local(frame, event, argument) if frame.f_code.co_filename == name else None

            start = time.perf_counter()
            threading.settrace(called)
            sys.settrace(called)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            sys.settrace(None)
            threading.settrace(None)
            self.times[item.nodeid] = time.perf_counter() - start

    def chosen(self, items, lines=None):
        """Return the tests that run one of the lines, fastest first, as time allows."""
        items = [item for item in items if lines is None or self.lines[item.nodeid] & lines]
        items.sort(key=lambda item: self.times.get(item.nodeid, 0.0))
        left, allowed = self.seconds, []
        for item in items:
            left -= self.times.get(item.nodeid, 0.0)
            if left < 0.0 and allowed:
                break
            allowed.append(item)
        return allowed


def patch(code: types.CodeType, path: Path) -> None:
    """Give the functions of an imported module the code of its mutant; forget what they cached."""
    new = {}

    def walk(part):
        for constant in part.co_consts:
            if isinstance(constant, types.CodeType):
                new[constant.co_name, constant.co_firstlineno, constant.co_freevars] = constant
                walk(constant)

    walk(code)
    for thing in gc.get_objects():
        kind = type(thing)  # not isinstance, for which torch's modules would warn
        if kind is types.FunctionType and thing.__code__.co_filename == str(path):
            old = thing.__code__
            key = old.co_name, old.co_firstlineno, old.co_freevars
            if key in new and old != new[key]:
                thing.__code__ = new[key]
        elif kind is functools._lru_cache_wrapper and thing.__module__.startswith("mpc_banded"):
            thing.cache_clear()


def load(mutant: Mutant) -> None:
    """Let the import system find the mutant in place of its module."""
    original = importlib.machinery.SourceFileLoader.get_code

    def get_code(self, name):
        return mutant.code if Path(self.path) == mutant.path else original(self, name)

    importlib.machinery.SourceFileLoader.get_code = get_code


def in_child(work, patience_s: float) -> str:
    """Run work in a forked process: "survived" if it returns true, "killed" if false.

    It is "endless" if it takes longer than ``patience_s``, and "broken" if it raises.
    """
    child = os.fork()
    if not child:
        os.setsid()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(patience_s) + 1)
        code = 99
        try:
            code = 0 if work() else 1
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        os._exit(code)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what its tests started
    if os.WIFSIGNALED(status):
        return "endless" if os.WTERMSIG(status) == signal.SIGALRM else "killed"
    return {0: "survived", 1: "killed"}.get(os.WEXITSTATUS(status), "broken")


def pytest_with(trial: Trial, loop) -> bool:
    """Run pytest silently, with a test loop of one's own; whether that returned true."""
    import pytest

    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    outcome = []

    class Loop:
        @pytest.hookimpl(tryfirst=True)
        def pytest_runtestloop(self, session):
            if session.testsfailed == 0:
                outcome.append(loop(session.items))
            return True

    arguments = ["-q", "-p", "no:cacheprovider", "-m", "not ros"]
    arguments += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # hypothesis is loaded
    pytest.main([*arguments, *tests_of(trial.path)], plugins=[trial, Loop()])
    return outcome == [True]


def examine(path: Path, sample: list[Mutant], seconds: float, report) -> None:
    """Try the mutants of one module.

    Args:
        path: The module.
        sample: Its mutants.
        seconds: How much of the tests' time a mutant may cost.
        report: Called with a mutant and its outcome.
    """
    trial = Trial(path, seconds)
    patience_s = 10.0 * seconds + 20.0
    shared = Path(tempfile.mkdtemp(prefix="mutants_")) / "found.jsonl"
    shared.touch()

    def all_but_import(items):
        trial.watch(items)
        with shared.open("w") as file:
            print(json.dumps([trial.times, trial.failed]), file=file, flush=True)
            for number, mutant in enumerate(sample):
                if trial.failed or mutant.at_import:
                    continue
                chosen = trial.chosen(items, mutant.lines)

                def tried(mutant=mutant, chosen=chosen):
                    patch(mutant.code, path)
                    return trial.run(chosen)

                outcome = in_child(tried, patience_s) if chosen else "unreached"
                print(json.dumps([number, outcome]), file=file, flush=True)
        return True

    in_child(lambda: pytest_with(trial, all_but_import), 36_000.0)
    lines = shared.read_text().splitlines()
    if not lines:
        print(f"{path.relative_to(ROOT)}: its tests cannot be collected", flush=True)
        return
    trial.times, failed = json.loads(lines[0])
    if failed:
        print(f"{path.relative_to(ROOT)}: its tests fail unchanged", flush=True)
        return
    outcomes = dict(json.loads(line) for line in lines[1:])
    for number, mutant in enumerate(sample):
        if outcomes.get(number) not in ("killed", "endless"):  # or ran at import, unseen

            def tried(mutant=mutant):
                load(mutant)
                return pytest_with(trial, lambda items: trial.run(trial.chosen(items)))

            outcomes[number] = in_child(tried, patience_s)
        report(mutant, outcomes[number])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", default=MUTATED, help="parts of their paths")
    parser.add_argument("--kinds", default="", help="parts of kinds: comparison,constant,...")
    parser.add_argument("--sample", type=int, help="number of mutants, drawn at random")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="of tests for one mutant")
    parser.add_argument("--list", action="store_true", help="list the mutants, try none")
    options = parser.parse_args()
    paths = [
        path
        for path in sorted(PACKAGE.rglob("*.py"))
        if any(part in path.relative_to(PACKAGE).as_posix() for part in options.modules)
    ]
    kinds = options.kinds.split(",")
    every = [m for p in paths for m in mutants(p) if any(kind in m.kind for kind in kinds)]
    if options.sample is not None and options.sample < len(every):
        every = random.Random(options.seed).sample(every, options.sample)
    print(f"{len(every)} mutants", flush=True)
    if options.list:
        print(*every, sep="\n")
        return
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    for library in LIBRARIES:
        importlib.import_module(library)
    counts: dict[str, Counter[str]] = defaultdict(Counter)

    def report(mutant, outcome):
        counts[mutant.path.relative_to(PACKAGE).as_posix()][outcome] += 1
        if outcome not in ("killed", "endless"):
            print(f"{outcome}: {mutant}", flush=True)

    for path in paths:
        if sample := [mutant for mutant in every if mutant.path == path]:
            examine(path, sample, options.seconds, report)
            found = counts[path.relative_to(PACKAGE).as_posix()]
            print(f"{path.relative_to(PACKAGE)}: {dict(found)}", flush=True)
    total: Counter[str] = sum(counts.values(), Counter())
    print(f"{sum(total.values())} tried: {dict(total)}")


if __name__ == "__main__":
    main()
