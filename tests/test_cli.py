# SPDX-License-Identifier: Apache-2.0
"""Commands refuse in one line, name what is not installed, and end without a traceback."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest

import mpc_banded
from mpc_banded import check, cli
from mpc_banded.robots.robot import BUILT_IN

PATIENCE_S = 60.0


def run(*arguments, code="from mpc_banded.cli import main; sys.exit(main())"):
    command = [sys.executable, "-c", f"import sys; {code}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        ("chekc unicycle.yaml", "'check'"),
        ("demo --robot bicylce", "'bicycle'"),
        ("demo --robot unicycle --params my.yaml", "not allowed with argument --robot"),
        ("demo --reference circle", "figure8, line, square, goal X Y YAW"),
        ("demo --reference goal 1 2", "goal X Y YAW"),
        ("demo --reference goal 1 2 nan", "goal X Y YAW"),
        ("demo --reference square 3", "figure8, line, square"),
        ("new", "DIR"),
        ("new my_robot --base tank", "'unicycle'"),
        ("demo --duration -3", "seconds > 0"),
        ("demo --duration 0", "seconds > 0"),
        ("demo --duration nan", "seconds > 0"),
        ("demo --duration long", "seconds > 0"),
        ("replay bag --jobs 0", "-1, 1, 2"),
        ("replay bag --jobs -2", "-1, 1, 2"),
        ("replay bag --tolerance command=-1", "number >= 0"),
        ("replay bag --tolerance command", "command=1e-3"),
        ("replay bag --set horizon", "horizon=40"),
        ("replay bag --topic odom=/pose", "odom:=/vehicle_pose"),
        ("replay bag --transform odom:map=1,2", "odom:map=1.0,2.0,0.5"),
        ("identify bag", "--params"),
    ],
)
def test_wrong_words_are_refused_with_what_is_allowed(arguments, allowed, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments.split())
    assert ended.value.code == cli.REFUSED
    assert allowed in capsys.readouterr().err.splitlines()[-1]


def test_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert not ended.value.code
    assert capsys.readouterr().out == f"mpc_banded {mpc_banded.__version__}\n"


def test_demo_offers_every_built_in_robot():
    assert cli.ROBOTS == BUILT_IN


def test_help_needs_nothing_that_is_slow_or_optional():
    hidden = ", ".join(f"{name}=None" for name in (*cli.OFFLINE, "torch", "rclpy", "scipy"))
    done = run(
        "--help", code=f"sys.modules.update({hidden}); from mpc_banded.cli import main; main()"
    )
    assert done.returncode == 0
    for command in ("new", "demo", "check", "compile", "replay", "identify", "exit codes"):
        assert command in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "missing", "remedy"),
    [
        ("replay bag", "rich", "pip install 'mpc_banded[offline]'"),
        ("identify bag --params file", "matplotlib", "pip install 'mpc_banded[offline]'"),
        ("demo", "rclpy", "source a ROS 2 distribution"),
        ("check file", "torch", "pip install torch"),
    ],
)
def test_what_is_not_installed_is_named_in_one_line(arguments, missing, remedy):
    hide = f"sys.modules[{missing!r}] = None; from mpc_banded.cli import main; sys.exit(main())"
    done = run(*arguments.split(), code=hide)
    assert done.returncode == cli.REFUSED
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"mpc_banded {arguments.split()[0]}: {missing} is not installed")
    assert remedy in line


def test_every_library_of_the_extra_is_known(repository):
    extra = re.search(r'"offline": \[(.*?)\]', (repository / "setup.py").read_text())[1]
    libraries = re.findall(r'"([\w.]+)"', extra)
    assert sorted(name.partition(".")[0] for name in libraries) == sorted(cli.OFFLINE)


def test_a_module_of_the_users_own_that_is_missing_is_no_extra(monkeypatch):
    def fail(_):
        import a_module_that_nobody_has  # noqa: F401

    monkeypatch.setattr(cli, "_check", fail)
    with pytest.raises(ModuleNotFoundError, match="nobody_has"):
        cli.main(["check", "file"])


def parameters(folder, **values):
    file = folder / "params.yaml"
    file.write_text(json.dumps({"/**": {"ros__parameters": values}}), encoding="utf-8")
    return str(file)


def test_check_tells_what_it_found_as_json(tmp_path, capsys):
    assert cli.main(["check", parameters(tmp_path, robot="unicycle", horizon=7), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["robot"], found["horizon"]) == (True, "unicycle", 7)
    assert found["input_bounds"]["linear_acceleration"] == [-1.0, 1.0]
    file = parameters(tmp_path, robot="unicycle", horizn=7)
    assert cli.main(["check", file, "--json"]) == cli.REFUSED
    refused = json.loads(capsys.readouterr().out)
    assert (refused["ok"], refused["file"]) == (False, file)
    assert "did you mean 'horizon'" in refused["error"]


BROKEN = """
import dataclasses
from mpc_banded.robots.unicycle import unicycle
robot = dataclasses.replace(unicycle, dynamics=lambda x, u, p: {}["speed"])
"""


def test_check_says_in_one_line_that_a_function_of_the_robot_fails(tmp_path, monkeypatch, capsys):
    (tmp_path / "broken_robots.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    file = parameters(tmp_path, robot="broken_robots:robot")
    assert cli.main(["check", file]) == cli.REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(file)
    assert "'speed'" in line


MESSAGES = """
import dataclasses
from mpc_banded.robots.messages import STATES
from mpc_banded.robots.unicycle import unicycle
topic = dataclasses.replace(STATES["odometry"], type="nobodys_msgs/msg/Pose")
robot = dataclasses.replace(unicycle, state_message=(topic,))
"""


@pytest.mark.ros
def test_check_refuses_messages_that_are_not_installed_as_the_node_does(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "messages_robots.py").write_text(MESSAGES)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert cli.main(["check", parameters(tmp_path, robot="messages_robots:robot")]) == cli.REFUSED
    assert "nobodys_msgs/msg/Pose are not installed" in capsys.readouterr().err


@pytest.mark.slow
def test_check_without_ros_says_what_it_left_out(tmp_path):
    file = parameters(tmp_path, robot="unicycle")
    hide = "sys.modules['rclpy'] = None; from mpc_banded.cli import main; sys.exit(main())"
    done = run("check", file, code=hide)
    assert done.returncode == cli.DONE
    assert check.NO_ROS in done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, cli.INTERRUPTED), (signal.SIGTERM, cli.TERMINATED)],
)
def test_a_signal_ends_a_command_without_a_traceback(tmp_path, number, code):
    begun, left = tmp_path / "begun", tmp_path / "left"
    (tmp_path / "slow_robots.py").write_text(
        "import pathlib, time\n"
        f"pathlib.Path({str(begun)!r}).touch()\n"
        "try:\n    time.sleep(60)\n"
        f"finally:\n    pathlib.Path({str(left)!r}).touch()\n"
    )
    start = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
    start += "from mpc_banded.cli import main; sys.exit(main())"
    file = parameters(tmp_path, robot="slow_robots:robot")
    with subprocess.Popen(
        [sys.executable, "-c", start, "check", file], stderr=subprocess.PIPE, text=True
    ) as process:
        end = time.monotonic() + PATIENCE_S
        while not begun.exists():
            assert time.monotonic() < end, "the robot's module is not loaded"
            time.sleep(0.05)
        process.send_signal(number)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code
    assert left.exists()
    assert "Traceback" not in said


@pytest.mark.ros
@pytest.mark.parametrize("name", ["node", "simulator", "recorder"])
def test_executables_explain_themselves_and_refuse_other_words(name):
    code = f"from mpc_banded.ros.{name} import main; sys.exit(main())"
    helped = run("--help", code=code)
    assert helped.returncode == 0
    assert f"usage: {'mpc' if name == 'node' else name}_node" in helped.stdout
    assert not helped.stderr
    refused = run("--hepl", "--ros-args", "-r", "__ns:=/words", code=code)
    assert refused.returncode == 2
    assert "--hepl" in refused.stderr
    assert "__ns" not in refused.stderr.splitlines()[-1]


@pytest.mark.ros
@pytest.mark.parametrize("name", ["node", "simulator", "recorder"])
def test_executables_end_without_the_teardown_of_their_modules(name, tmp_path):
    """It takes Python and torch most of a second of processor time after the robot has stopped."""
    code = "import atexit; atexit.register(print, 'torn down')\n"
    code += f"from mpc_banded.ros.{name} import main; main()"
    missing = str(tmp_path / "missing.yaml")
    ended = run("--ros-args", "--params-file", missing, code=code)
    assert ended.returncode == 2
    assert missing in ended.stderr
    assert "torn down" not in ended.stdout


@pytest.mark.ros
def test_a_demo_that_is_ended_leaves_nothing_half_written_and_no_process(tmp_path):
    output = tmp_path / "demo"
    command = [sys.executable, "-m", "mpc_banded", "demo", "--robot", "cartpole"]
    with subprocess.Popen(
        [*command, "--output", str(output)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,  # the nodes inherit it, so it ends after them
        text=True,
    ) as process:
        end = time.monotonic() + PATIENCE_S
        while not list(tmp_path.glob(".demo.*/bag/*")):
            assert time.monotonic() < end, "nothing is recorded"
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == cli.TERMINATED
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []
