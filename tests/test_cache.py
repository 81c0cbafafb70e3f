# SPDX-License-Identifier: Apache-2.0
"""The cache loads only what was built for this machine, and rebuilds damaged entries."""

import ctypes
import errno
import grp
import hashlib
import json
import os
import pwd
import resource
import stat
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from mpc_banded.codegen import build, emit
from mpc_banded.codegen import cache as cache_module
from mpc_banded.codegen.build import NoCompiler
from mpc_banded.codegen.cache import LibraryCache, NotBuilt, UnsafeCache, default_folder
from mpc_banded.codegen.emit import Argument, Result, Section, c_function

MODE = stat.S_IMODE


def source(factor=2.0):
    """C source of a kernel that multiplies three numbers."""
    section = Section(lambda w: [factor * w], (Argument("w", (3,)),), (Result(0),), 1)
    return emit.PRELUDE + c_function("times", ("w",), (section,), 3)


def product(library):
    """What the kernel makes of (1, 2, 3)."""
    w, out = np.array([1.0, 2.0, 3.0]), np.empty(3)
    library.function("times", 2)(w.ctypes.data, out.ctypes.data)
    return out.tolist()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def builds(monkeypatch):
    """Paths of what was built meanwhile."""
    made = []

    def counted(text, path, started=None):
        made.append(path)
        build.compile_library(text, path, started)

    monkeypatch.setattr(cache_module, "compile_library", counted)
    return made


@pytest.fixture
def entry(folder, monkeypatch):
    """Path of a library in the cache that no process has loaded, so that it may be spoilt."""
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "Library", lambda path: path)
        return LibraryCache(folder).library(source())


def test_a_library_is_built_once_and_then_found_without_a_compiler(folder, builds, monkeypatch):
    first = LibraryCache(folder).library(source())
    assert product(first) == [2.0, 4.0, 6.0]
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    again = LibraryCache(folder).library(source())
    assert (again.path, product(again)) == (first.path, [2.0, 4.0, 6.0])
    assert LibraryCache(folder).stored(first.path).path == first.path
    assert len(builds) == 1
    with pytest.raises(NoCompiler, match="no C compiler"):
        LibraryCache(folder).library(source(3.0))
    assert names(folder) == [f"{first.path.stem}.json", f"{first.path.stem}.so"]


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        (build, "FLAGS", ("-O1", "-fPIC", "-shared")),
        (torch, "__version__", "2.0.0"),
        (build, "machine", lambda: "another"),
    ],
)
def test_another_machine_has_another_library(folder, builds, monkeypatch, where, name, value):
    ours = LibraryCache(folder).library(source()).path
    with monkeypatch.context() as patch:
        patch.setattr(where, name, value)
        with pytest.raises(ValueError, match="was made from something else or elsewhere"):
            LibraryCache(folder).stored(ours)
        theirs = LibraryCache(folder).library(source()).path
    assert theirs != ours
    assert LibraryCache(folder).library(source()).path == ours
    assert len(builds) == 2


def test_another_source_has_another_library(folder):
    cache = LibraryCache(folder)
    libraries = [cache.library(source(factor)) for factor in (2.0, 3.0)]
    assert [product(library) for library in libraries] == [[2.0, 4.0, 6.0], [3.0, 6.0, 9.0]]
    assert len(names(folder)) == 4


# --- whose folder it is ---------------------------------------------------------------------


def test_folder_and_files_are_made_for_their_user_alone_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        folder = tmp_path / "home" / ".cache" / "mpc_banded"
        library = LibraryCache(folder).library(source())
    finally:
        os.umask(before)
    assert [MODE(p.stat().st_mode) for p in (folder, *folder.parents[:2])] == [0o700] * 3
    assert [MODE(p.stat().st_mode) for p in folder.iterdir()] == [0o600] * 2
    assert library.path.parent == folder


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
def test_folder_where_others_may_write_is_refused(folder, mode):
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(UnsafeCache) as refusal:
        LibraryCache(folder)
    text = str(refusal.value)
    for part in (folder, f"owner {os.getuid()}", stat.filemode(folder.stat().st_mode)):
        assert str(part) in text
    assert "chmod 700" in text
    assert "MPC_BANDED_CACHE" in text
    folder.chmod(0o700)
    LibraryCache(folder)


def test_link_to_a_folder_is_refused(folder, tmp_path):
    LibraryCache(tmp_path / "real")
    folder.symlink_to(tmp_path / "real")
    with pytest.raises(UnsafeCache, match="mode lrwx"):
        LibraryCache(folder)


def test_folder_of_another_user_is_refused(folder, monkeypatch):
    LibraryCache(folder)
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(UnsafeCache, match=f"owner {owner} and .* folder of user {owner + 1}"):
        LibraryCache(folder)


@pytest.mark.parametrize(("mode", "safe"), [(0o755, True), (0o1777, True), (0o757, False)])
def test_folder_that_others_can_replace_is_refused(tmp_path, mode, safe):
    above = tmp_path / "above"
    above.mkdir()
    above.chmod(mode)
    if safe:
        LibraryCache(above / "cache" / "mpc_banded")
        return
    with pytest.raises(UnsafeCache, match=f"^{above} has .* chmod go-w it"):
        LibraryCache(above / "cache" / "mpc_banded")


@pytest.mark.parametrize(
    ("group", "members", "safe"), [("me", [], True), ("me", ["her"], False), ("team", [], False)]
)
def test_group_may_write_above_only_if_it_is_the_users_own(
    tmp_path, monkeypatch, group, members, safe
):
    me = pwd.struct_passwd(("me", "x", os.getuid(), os.getgid(), "", "/", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda _: me)
    monkeypatch.setattr(grp, "getgrgid", lambda g: grp.struct_group((group, "x", g, members)))
    above = tmp_path / "above"
    above.mkdir()
    above.chmod(0o770)
    if safe:
        LibraryCache(above / "cache")
    else:
        with pytest.raises(UnsafeCache, match="others could put a folder in place"):
            LibraryCache(above / "cache")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_folder_below_that_of_another_user_is_refused(tmp_path):
    above = tmp_path / "above"
    LibraryCache(above / "cache")
    os.chown(above, 65534, 65534)
    with pytest.raises(UnsafeCache, match="has owner 65534"):
        LibraryCache(above / "cache")


def test_links_above_are_followed_and_what_they_lead_to_is_checked(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "home").symlink_to(tmp_path / "data")
    assert LibraryCache(tmp_path / "home" / "cache").folder == tmp_path / "data" / "cache"
    (tmp_path / "data").chmod(0o777)
    with pytest.raises(UnsafeCache, match=f"^{tmp_path / 'data'} has"):
        LibraryCache(tmp_path / "home" / "cache")


def test_where_the_folder_is(monkeypatch, tmp_path):
    for name in ("MPC_BANDED_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "mpc_banded"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_folder() == tmp_path / ".cache" / "mpc_banded"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_folder() == Path("/xdg/mpc_banded")
    monkeypatch.setenv("MPC_BANDED_CACHE", "~/given")
    assert default_folder() == tmp_path / "given"


def test_user_without_a_home_is_told_what_to_set(monkeypatch):
    def nobody(number):
        raise KeyError(number)

    for name in ("MPC_BANDED_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(OSError, match=r"no home for the cache: .*MPC_BANDED_CACHE"):
        LibraryCache()


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "cache"
    with pytest.raises(OSError, match=f"{below} cannot be used: .*MPC_BANDED_CACHE"):
        LibraryCache(below)


# --- what is loaded -------------------------------------------------------------------------


def unloadable(path):
    """As if it had been built where the C library is newer."""
    symbol = "double not_in_this_c_library(double); "
    build.compile_library(
        f"{symbol}double f(double x) {{ return not_in_this_c_library(x); }}", path
    )
    record = json.loads(path.with_suffix(".json").read_text())
    record["content"] = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".json").write_text(json.dumps(record))
    path.chmod(0o600)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def foreign_record(path):
    record = json.loads(path.with_suffix(".json").read_text())
    record["made_from"]["machine"] = "another"
    path.with_suffix(".json").write_text(json.dumps(record))


def library_of_another_source(path):
    other = LibraryCache(path.parent).library(source(3.0)).path
    for suffix in (".so", ".json"):
        other.with_suffix(suffix).rename(path.with_suffix(suffix))


def linked_from_outside(path):
    path.rename(path.parents[1] / "outside.so")
    path.symlink_to(path.parents[1] / "outside.so")


def record_text(text):
    return lambda path: path.with_suffix(".json").write_text(text)


FAULTS = {
    "one bit": (flip_a_bit, "is damaged"),
    "truncated": (lambda path: os.truncate(path, 1000), "is damaged"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "is damaged"),
    "empty": (lambda path: os.truncate(path, 0), "is damaged"),
    "missing": (lambda path: path.unlink(), "No such file"),
    "link": (linked_from_outside, "cannot be trusted"),
    "open to the group": (lambda path: path.chmod(0o660), "others may write to it"),
    "record missing": (lambda path: path.with_suffix(".json").unlink(), "No such file"),
    "record open to all": (lambda p: p.with_suffix(".json").chmod(0o666), "others may write"),
    "record empty": (record_text(""), "cannot be trusted"),
    "record no text": (lambda p: p.with_suffix(".json").write_bytes(b"\xff\xfe\xff"), "trusted"),
    "record a list": (record_text("[]"), "was made from something else"),
    "record of nothing": (record_text('{"made_from": []}'), "was made from something else"),
    "record foreign": (foreign_record, "was made from something else"),
    "both of another": (library_of_another_source, "was made from something else"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_changed_entry_is_never_loaded_but_rebuilt_with_a_message(
    folder, entry, builds, monkeypatch, caplog, fault
):
    loads, good = [], entry.read_bytes()
    spoil, why = FAULTS[fault]
    spoil(entry)
    builds.clear()
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "Library", lambda path: loads.append(path.read_bytes()))
        if fault != "both of another":  # sound in itself; only its source can tell
            with pytest.raises(ValueError, match=why):
                LibraryCache(folder).stored(entry)
        assert not loads
        LibraryCache(folder).library(source())
    assert loads == [good] * 2  # once before it is stored, and once from its place
    assert len(builds) == 1
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"{entry} ")
    assert why in message
    assert message.endswith("it is rebuilt")
    assert product(LibraryCache(folder).stored(entry)) == [2.0, 4.0, 6.0]
    assert names(folder) == [f"{entry.stem}.json", f"{entry.stem}.so"]


def test_foreign_code_in_place_of_a_library_does_not_run(folder, entry, tmp_path):
    trace, intruder = tmp_path / "trace", tmp_path / "intruder.so"
    build.compile_library(
        "#include <fcntl.h>\n__attribute__((constructor)) static void run(void)\n"
        f'{{ creat("{trace}", 0600); }}\n',
        intruder,
    )
    entry.write_bytes(intruder.read_bytes())
    with pytest.raises(ValueError, match="is damaged"):
        LibraryCache(folder).stored(entry)
    assert product(LibraryCache(folder).library(source())) == [2.0, 4.0, 6.0]
    assert not trace.exists()
    ctypes.CDLL(str(intruder))  # the trap works
    assert trace.exists()


def test_library_that_cannot_be_loaded_is_rebuilt(folder, entry, builds, caplog):
    unloadable(entry)
    builds.clear()
    with pytest.raises(NotBuilt, match=r"cannot be loaded .*not_in_this_c_library"):
        LibraryCache(folder).library(source(), build=False)
    with pytest.raises(ValueError, match=r"cannot be loaded .*not_in_this_c_library"):
        LibraryCache(folder).stored(entry)
    assert product(LibraryCache(folder).library(source())) == [2.0, 4.0, 6.0]
    assert len(builds) == 1
    assert "it is rebuilt" in caplog.text


def compiler(folder, text):
    """Path of a shell script that stands for a compiler."""
    script = folder / "cc"
    script.write_text(f"#!/bin/sh\n{text}\n")
    script.chmod(0o700)
    return str(script)


def test_another_compiler_has_another_library(folder, builds, monkeypatch, tmp_path):
    real, seven = build.c_compiler()[0], source() + "#ifdef SEVEN\nconst int seven;\n#endif\n"
    ours = LibraryCache(folder).library(seven)
    monkeypatch.setenv("CC", f"{real} -DSEVEN")
    theirs = LibraryCache(folder).library(seven)
    assert theirs.path != ours.path
    assert theirs.integer("seven") == 0
    monkeypatch.setenv("CC", compiler(tmp_path, f'exec {real} "$@"'))
    updated = LibraryCache(folder).library(seven).path
    compiler(tmp_path, f'exec {real} -O0 "$@"  # as an update would leave it')
    paths = {ours.path, theirs.path, updated, LibraryCache(folder).library(seven).path}
    assert len(paths) == len(builds) == 4
    monkeypatch.setenv("CC", "not-installed")
    assert LibraryCache(folder).library(seven).path in paths


def test_garbage_that_a_compiler_reports_as_success_is_not_stored(folder, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        writes = 'cat >/dev/null; while [ "$1" != -o ]; do shift; done; echo no >"$2"'
        patch.setenv("CC", compiler(tmp_path, writes))
        with pytest.raises(OSError, match=r"compiler has written a library that cannot be loaded"):
            LibraryCache(folder).library(source())
    assert names(folder) == []
    assert product(LibraryCache(folder).library(source())) == [2.0, 4.0, 6.0]


def test_library_elsewhere_is_refused(entry, tmp_path):
    other = LibraryCache(tmp_path / "other")
    for elsewhere in (entry, other.folder / "below" / entry.name, Path(entry.name)):
        with pytest.raises(ValueError, match=f"is elsewhere; the cache is {other.folder}"):
            other.stored(elsewhere)


def test_file_system_without_code_is_named_as_a_cause(folder, monkeypatch):
    def refuse(path):
        raise OSError(f"{path}: failed to map segment from shared object")

    monkeypatch.setattr(cache_module, "Library", refuse)
    with pytest.raises(OSError, match=r"failed to map .*noexec.*MPC_BANDED_CACHE"):
        LibraryCache(folder).library(source())


# --- builds ---------------------------------------------------------------------------------


def test_builders_of_the_same_take_turns_and_the_second_finds_it(folder, builds):
    both, found = threading.Barrier(2), []

    def find():
        cache = LibraryCache(folder)
        both.wait()
        found.append(cache.library(source()))

    threads = [threading.Thread(target=find) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [product(library) for library in found] == [[2.0, 4.0, 6.0]] * 2
    assert len(builds) == 1


def test_build_that_hangs_delays_no_other_and_is_reported_to_one_of_the_same(folder, monkeypatch):
    cache, waits = LibraryCache(folder), threading.Event()

    def patient(text, path, started=None):
        if text == source():
            building.set()
            assert waits.wait(30.0)
        build.compile_library(text, path, started)

    building = threading.Event()
    monkeypatch.setattr(cache_module, "compile_library", patient)
    monkeypatch.setattr(cache_module, "PATIENCE_S", 0.1)
    slow = threading.Thread(target=cache.library, args=(source(),))
    slow.start()
    assert building.wait(30.0)
    try:
        assert product(cache.library(source(3.0))) == [3.0, 6.0, 9.0]
        with pytest.raises(OSError, match=r"another process has been building .* for too long"):
            cache.library(source())
    finally:
        waits.set()
        slow.join()
    assert product(cache.library(source())) == [2.0, 4.0, 6.0]
    assert not list(folder.glob("building-*"))


def test_file_system_without_locks_will_do(folder, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(cache_module.fcntl, "flock", unsupported)
    (folder / "building-elsewhere").mkdir(parents=True, mode=0o700)
    folder.chmod(0o700)
    assert product(LibraryCache(folder).library(source())) == [2.0, 4.0, 6.0]
    assert "building-elsewhere" in names(folder)  # its builder may be at work


def test_interrupted_build_leaves_nothing(folder, monkeypatch):
    def interrupted(_, path, __):
        path.write_bytes(b"half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "compile_library", interrupted)
        with pytest.raises(KeyboardInterrupt):
            LibraryCache(folder).library(source())
    assert names(folder) == []


def test_killed_build_leaves_nothing_that_is_loaded_and_the_next_one_clears_up(folder):
    half = folder / "building-killed"
    half.mkdir(parents=True)
    folder.chmod(0o700)
    (half / "half.so").write_bytes(b"half of it")
    library = LibraryCache(folder).library(source())
    assert product(library) == [2.0, 4.0, 6.0]
    assert names(folder) == [f"{library.path.stem}.json", f"{library.path.stem}.so"]


def test_build_that_ends_before_its_record_is_in_place_counts_as_none(
    folder, builds, monkeypatch, caplog
):
    replace = Path.replace

    def killed(path, target):
        if target.suffix == ".json":
            raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            LibraryCache(folder).library(source())
    (path,) = folder.iterdir()
    with pytest.raises(ValueError, match="cannot be trusted"):
        LibraryCache(folder).stored(path)
    assert product(LibraryCache(folder).library(source())) == [2.0, 4.0, 6.0]
    assert len(builds) == 2
    assert "it is rebuilt" in caplog.text


def test_full_disk_is_reported_and_leaves_nothing(folder, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match=f"{folder} cannot be used: .*No space left"):
            LibraryCache(folder).library(source())
    assert names(folder) == []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(NoCompiler, match="failed: "):
            LibraryCache(folder).library(source())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(folder) == []
    assert product(LibraryCache(folder).library(source())) == [2.0, 4.0, 6.0]
