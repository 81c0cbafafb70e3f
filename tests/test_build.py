# SPDX-License-Identifier: Apache-2.0
"""The compiler is found, its failures are passed on, and its libraries are loaded."""

import math
import platform
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpc_banded.codegen import build
from mpc_banded.codegen.build import Library, NoCompiler, c_compiler, compile_library, machine
from mpc_banded.codegen.emit import PRELUDE


def test_library_tells_its_signature(tmp_path):
    path, kernel = tmp_path / "kernel.so", PRELUDE
    compile_library(kernel, path)
    assert Library(path).signature == ""
    other = tmp_path / "other.so"
    compile_library(f'{kernel}const char signature[] = "two by three";', other)
    assert Library(other).signature == "two by three"


@pytest.fixture
def compilers(tmp_path, monkeypatch):
    """Installs programs of given names, and nothing else."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))

    def install(*names, text="#!/bin/sh\nexit 0\n"):
        for name in names:
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(stat.S_IRWXU)
        return tmp_path

    return install


def test_compiler_is_the_one_that_was_asked_for_or_the_first_of_the_usual(compilers, monkeypatch):
    folder = compilers("clang", "gcc", "mine")
    assert c_compiler() == [str(folder / "gcc")]
    compilers("cc")
    assert c_compiler() == [str(folder / "cc")]
    monkeypatch.setenv("CC", "mine -m64")
    assert c_compiler() == [str(folder / "mine"), "-m64"]
    monkeypatch.setenv("CC", "nobodys")
    with pytest.raises(NoCompiler, match="CC is 'nobodys', which is not in PATH"):
        c_compiler()


def test_lack_of_a_compiler_is_reported(compilers, tmp_path):
    compilers()
    with pytest.raises(NoCompiler, match="no C compiler: cc, gcc and clang are not in PATH"):
        compile_library("", tmp_path / "kernel.so")


def test_what_a_compiler_says_when_it_fails_is_passed_on(compilers, tmp_path):
    compilers("cc", text="#!/bin/sh\necho 'my disk is full' >&2\nexit 1\n")
    with pytest.raises(NoCompiler, match=r"cc .* failed: my disk is full"):
        compile_library("", tmp_path / "kernel.so")


def test_a_compiler_that_fails_silently_is_reported_by_its_exit_status(compilers, tmp_path):
    compilers("cc", text="#!/bin/sh\nexit 3\n")
    with pytest.raises(NoCompiler, match=r"cc .* failed: exit status 3"):
        compile_library("", tmp_path / "kernel.so")


def test_source_that_is_no_c_is_an_error(tmp_path):
    with pytest.raises(NoCompiler, match=r"failed: .*error"):
        compile_library("this is no C", tmp_path / "kernel.so")


def test_compiler_that_is_killed_or_cannot_be_run_is_reported(compilers, tmp_path):
    compilers("cc", text="#!/bin/sh\nkill -9 $$\n")
    with pytest.raises(NoCompiler, match="was ended by SIGKILL"):
        compile_library("", tmp_path / "kernel.so")
    compilers("cc", text="#!/nowhere/sh\n")
    with pytest.raises(NoCompiler, match="cannot be run: "):
        compile_library("", tmp_path / "kernel.so")


def test_missing_command_is_reported(monkeypatch):
    monkeypatch.setenv("CC", "gcc 'half a quote")
    with pytest.raises(NoCompiler, match="which is no command: No closing quotation"):
        c_compiler()


def test_compiler_that_hangs_is_ended_with_all_that_it_started(tmp_path, monkeypatch):
    script, child = tmp_path / "cc", tmp_path / "child"
    script.write_text(f"#!/bin/sh\nsleep 600 &\necho $! >{child}\nwait\n")
    script.chmod(stat.S_IRWXU)
    monkeypatch.setenv("CC", str(script))
    monkeypatch.setattr(build, "BASE_LIMIT_S", 0.5)
    with pytest.raises(NoCompiler, match=r"cc .* was ended: it had not finished after 0 s"):
        compile_library("", tmp_path / "kernel.so")
    process = Path("/proc", child.read_text().strip(), "stat")
    for _ in range(100):  # an orphan is reaped by somebody else
        if not process.exists() or process.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child of the compiler is alive")


def test_temporary_files_go_where_the_library_goes(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/nowhere")
    script, told = tmp_path / "cc", tmp_path / "told"
    script.write_text(f'#!/bin/sh\ncat >/dev/null\necho "$TMPDIR" >{told}\n')
    script.chmod(stat.S_IRWXU)
    monkeypatch.setenv("CC", str(script))
    compile_library("", tmp_path / "kernel.so")
    assert told.read_text().strip() == str(tmp_path)


# --- machines -------------------------------------------------------------------------------


@pytest.mark.skipif(platform.machine() != "x86_64", reason="vzeroupper is of x86-64")
@pytest.mark.skipif(not shutil.which("objdump"), reason="needs objdump")
def test_vector_registers_are_clean_before_calls_into_libm(tmp_path):
    source = """#include <math.h>
    void kernel(const double *restrict a, double *restrict out) {
        double wide[8];
        for (int i = 0; i < 8; ++i) wide[i] = a[i] * a[i + 8] + 1.0;
        for (int i = 0; i < 8; ++i) out[i] += log(wide[i]);
    }"""
    compile_library(source, tmp_path / "kernel.so")
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", str(tmp_path / "kernel.so")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    body = listing.partition("<kernel>:")[2].partition("\n\n")[0]
    if not re.search(r"%[yz]mm", body):
        pytest.skip("this processor has no AVX")
    before = body.partition("<log@plt>")[0]
    assert "vzeroupper" in before[[m.start() for m in re.finditer(r"%[yz]mm", before)][-1] :]


def test_machine_tells_variants_of_libm_apart():
    """By their bits: glibc chooses some functions by the processor, which a tunable can hide."""
    code = "from mpc_banded.codegen.build import machine; import math; print(machine())\n"
    code += "print([getattr(math, f)(0.1 + 0.01 * i) for f in ('sin', 'exp') for i in range(500)])"
    outputs = []
    for environment in ({}, {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-FMA,-AVX2,-FMA4,-AVX512F"}):
        command = ["env", *(f"{name}={value}" for name, value in environment.items())]
        run = [*command, sys.executable, "-c", code]
        outputs.append(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    (first, values), (second, others) = (output.splitlines() for output in outputs)
    assert first == machine()
    assert first.startswith(f"{platform.machine()}, ")
    if values != others:
        assert first != second
        assert first.rpartition(",")[0] == second.rpartition(",")[0]


def test_machine_changes_with_the_last_bit_of_a_function(monkeypatch):
    before, sin = machine(), math.sin
    monkeypatch.setattr(math, "sin", lambda x: math.nextafter(sin(x), 2.0))
    assert machine.__wrapped__() != before
