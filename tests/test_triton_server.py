"""scripts/triton, with real servers from PyPI; and what is in their environment."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from scripts.triton_server.container import IMAGE
from scripts.triton_server.environment import find_base_python, make_environment, requirements
from scripts.triton_server.launch import Addresses
from scripts.triton_server.wheel import wheel_launch

pytestmark = pytest.mark.xdist_group("triton")

ROOT = Path(__file__).parents[1]
SHARED_MEMORY = Path("/dev/shm")

CONFIG = """
backend: "python"
model_transaction_policy { decoupled: true }
input [ { name: "text_input" data_type: TYPE_STRING dims: [ 1 ] } ]
input [ { name: "stream" data_type: TYPE_BOOL dims: [ 1 ] optional: true } ]
output [ { name: "text_output" data_type: TYPE_STRING dims: [ 1 ] } ]
instance_group [ { kind: KIND_CPU } ]
"""
# Answers with the text in capitals: at once, or letter by letter.
MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            text = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy()[0].decode()
            if text == "fail":
                raise ValueError("no such text")
            stream = pb_utils.get_input_tensor_by_name(request, "stream")
            sender = request.get_response_sender()
            for part in text if stream else [text]:
                array = np.array([part.upper().encode()], np.object_)
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("text_output", array)]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
BROKEN = """
class TritonPythonModel:
    def initialize(self, args):
        raise ValueError("there is nothing\\nto load")
"""
SLOW = """
import os, time

class TritonPythonModel:
    def initialize(self, args):
        with open({path!r} + ".new", "w") as file:
            file.write(str(os.getpid()))
        os.rename(file.name, {path!r})
        time.sleep(60)
"""


@pytest.fixture(scope="module", autouse=True)
def environment() -> None:
    """Made beforehand, so that it counts towards no test's time limit."""
    if find_base_python() is None:
        pytest.skip("no Python fits Triton's server")
    make_environment()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    add_model(tmp_path / "models", "capitals", MODEL)
    return tmp_path / "models"


def add_model(repository: Path, name: str, source: str) -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(CONFIG)
    (repository / name / "1" / "model.py").write_text(source)


def command(repository: Path, *options: str) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / "triton"), str(repository), *options]


def run(
    repository: Path, *options: str, path: str | None = None
) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | ({"PATH": path} if path else {})
    return subprocess.run(
        command(repository, *options), capture_output=True, text=True, check=False, env=environment
    )


class Started:
    """scripts/triton once it is ready, what it printed, its server, and the models' processes."""

    def __init__(self, process: "subprocess.Popen[str]", addresses: Addresses) -> None:
        self.process = process
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"Ready: {addresses.url}, ")
        self.commands = [process.stdout.readline() for _ in range(4)][1::2]
        (server,) = psutil.Process(process.pid).children()
        self.processes = [server, *server.children(recursive=True)]
        (model,) = server.children()
        self.shared_memory = SHARED_MEMORY / model.cmdline()[2]
        assert self.shared_memory.exists()

    def assert_gone(self) -> None:
        """Everything that belonged to it."""
        _, alive = psutil.wait_procs(self.processes, timeout=20)
        assert not alive
        assert not self.shared_memory.exists()


@contextmanager
def started(repository: Path, path: str = os.environ["PATH"]) -> Iterator[Started]:
    a = Addresses.free()
    ports = {"http": a.http_port, "grpc": a.grpc_port, "metrics": a.metrics_port}
    options = [f"--{kind}-port={port}" for kind, port in ports.items()]
    with subprocess.Popen(
        command(repository, *options),
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PATH": path},
    ) as process:
        try:
            yield Started(process, a)
        finally:
            process.terminate()


def test_versions_are_those_of_constraints_txt() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["triton"]]
    # The client isn't part of a server, but what opens encrypted bundles is.
    names = {re.split(r"[\[>=]", name)[0] for name in needed} - {"tritonclient"} | {"cryptography"}
    (numpy,) = (line for line in requirements() if line.startswith("numpy=="))
    assert numpy.startswith("numpy==1.")
    assert set(requirements()) - set(lines) == {numpy, "nvidia-pytriton==0.7.0"}
    assert {line.split("==")[0] for line in requirements()} == names | {"nvidia-pytriton"}


def test_an_answer_in_one_command(repository: Path) -> None:
    done = run(repository, "--ask", " naïve 😀")
    assert (done.stdout, done.stderr, done.returncode) == (" NAÏVE 😀\n", "", 0)
    failed = run(repository, "--ask", "fail")
    assert failed.returncode == 1
    assert "no such text" in failed.stderr


def test_printed_commands_work_and_sigterm_ends_it(repository: Path) -> None:
    with started(repository) as server:
        answers = [
            subprocess.run(
                [*shlex.split(line), "--silent"], stdout=subprocess.PIPE, text=True, check=True
            ).stdout
            for line in server.commands
        ]
        assert '"text_output":"ONCE UPON A TIME"' in answers[0]
        assert re.findall(r'"text_output":"(.)"', answers[1]) == list("ONCE UPON A TIME")
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(20) == 0
        server.assert_gone()


def test_a_killed_server_leaves_nothing(repository: Path) -> None:
    with started(repository) as server:
        server.processes[1].suspend()  # else it may notice that the server is gone
        server.processes[0].kill()
        assert server.process.wait(20) == 128 + signal.SIGKILL
        server.assert_gone()


def test_a_killed_script_ends_its_server(repository: Path) -> None:
    with started(repository) as server:
        server.process.kill()
        server.assert_gone()


def test_a_signal_while_it_starts(repository: Path, tmp_path: Path) -> None:
    started = tmp_path / "pid"
    add_model(repository, "slow", SLOW.format(path=str(started)))
    with subprocess.Popen(command(repository, "--ask", "a")) as process:
        deadline = time.monotonic() + 20
        while not started.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        model = psutil.Process(int(started.read_text()))
        model.suspend()  # else it may notice that the server is gone
        process.terminate()
        assert process.wait(20) == 128 + signal.SIGTERM
        model.wait(20)


def test_a_model_that_fails_says_why(repository: Path) -> None:
    add_model(repository, "broken", BROKEN)
    done = run(repository, "--ask", "a")
    sentence = "The model broken (version 1) didn't load: ValueError: there is nothing to load"
    assert (done.stderr, done.returncode) == (f"Error: {sentence}\n", 1)


def test_a_config_that_cannot_be_read_and_an_unknown_option(repository: Path) -> None:
    done = run(repository, "--ask", "a", "--", "--log-format=nonsense")
    assert 'Bad option: "--log-format"' in done.stderr
    config = repository / "capitals" / "config.pbtxt"
    config.write_text("nonsense {")
    done = run(repository, "--ask", "a")
    sentence = f"The model capitals didn't load: failed to read text proto from {config}"
    assert (done.stderr, done.returncode) == (f"Error: {sentence}\n", 1)


def test_what_is_wrong_is_said_before_anything_starts(repository: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run(repository, f"--grpc-port={port}")
    assert f"Port {port} of 127.0.0.1 can't be listened on (Address already in use)" in done.stderr
    assert "has no models" in run(tmp_path / "models" / "capitals", "--ask", "a").stderr
    assert "leave one of them out" in run(repository, "--poll", "--explicit").stderr


DOCKER = """#!/usr/bin/env bash
echo "$@" >> {directory}/asked
case $1 in
    image) printf 'nvcr.io/nvidia/tritonserver:%s\\n' 25.08-py3 25.10-py3 25.11-py3-min ;;
    build) cat > {directory}/Dockerfile; echo sha256:abc ;;
    run)
        while [[ $1 != tritonserver ]]; do shift; done
        exec env {environment} {server} {backends} "${{@:2}}" ;;
esac
"""


def test_in_a_container_where_its_image_is(repository: Path, tmp_path: Path) -> None:
    """Docker is played, the server in its container is real."""
    launch = wheel_launch(repository, [])
    assert launch.shm_prefix
    docker = tmp_path / "docker"
    docker.write_text(
        DOCKER.format(
            directory=tmp_path,
            environment=shlex.join(f"{key}={value}" for key, value in launch.environment.items()),
            server=launch.command[0],
            backends=shlex.join(launch.command[2:4]),
        )
    )
    docker.chmod(0o755)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (repository / "capitals" / "1" / "bundle").symlink_to(elsewhere)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    done = run(repository, "--ask", "a", path=path)
    assert (done.stdout, done.stderr, done.returncode) == ("A\n", "", 0)
    _, _, build, started, removed = (tmp_path / "asked").read_text().splitlines()
    assert build.startswith("build ")
    assert (tmp_path / "Dockerfile").read_text().startswith(f"FROM {IMAGE}:25.10-py3\n")
    for directory in (repository, elsewhere):
        assert f" --volume={directory}:{directory}:ro " in started
    (name,) = re.findall(r"--name=(\S+)", started)
    assert removed == f"rm --force {name}"
