# SPDX-License-Identifier: Apache-2.0
"""The compiler is found, its failures are passed on, and its libraries are loaded."""

import stat

import pytest

from mpc_banded.codegen.build import Library, NoCompiler, c_compiler, compile_library
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


def test_lack_of_a_compiler_is_said(compilers, tmp_path):
    compilers()
    with pytest.raises(NoCompiler, match="no C compiler: cc, gcc and clang are not in PATH"):
        compile_library("", tmp_path / "kernel.so")


def test_what_a_compiler_says_when_it_fails_is_passed_on(compilers, tmp_path):
    compilers("cc", text="#!/bin/sh\necho 'my disk is full' >&2\nexit 1\n")
    with pytest.raises(NoCompiler, match=r"cc .* failed: my disk is full"):
        compile_library("", tmp_path / "kernel.so")


def test_a_compiler_that_fails_without_a_word_is_told_by_its_exit_status(compilers, tmp_path):
    compilers("cc", text="#!/bin/sh\nexit 3\n")
    with pytest.raises(NoCompiler, match=r"cc .* failed: exit status 3"):
        compile_library("", tmp_path / "kernel.so")


def test_source_that_is_no_c_is_an_error(tmp_path):
    with pytest.raises(NoCompiler, match=r"failed: .*error"):
        compile_library("this is no C", tmp_path / "kernel.so")
