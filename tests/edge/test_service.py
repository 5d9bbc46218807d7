"""llm-serve as systemd starts it: by socket activation, with notifications and a watchdog."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

import serving
from scripts.edge.architectures import ARCHITECTURES
from tests.edge.conftest import unpacked_package

pytestmark = pytest.mark.xdist_group("edge")

CONTEXT = 48
OPTIONS = {
    "temperature": 0.9,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.01,
    "repetition_penalty": 1.1,
    "max_new_tokens": 9,
    "seed": 2**64 - 1,
}
PROMPTS = ("def main(", "import os", "    return ", "class A:\n")


@pytest.fixture(scope="module")
def package(trained_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = next(name for name, each in ARCHITECTURES.items() if each.is_here)
    folder = tmp_path_factory.mktemp("service")
    return unpacked_package(trained_bundle, folder, here, "--context", CONTEXT)


@pytest.fixture(scope="module")
def texts(trained_bundle: Path) -> dict[str, str]:
    """What the Python runtime writes behind each prompt."""
    with serving.load(trained_bundle, threads=1, capacity=CONTEXT) as model:
        most = {prompt: CONTEXT - len(model.encode(prompt)) for prompt in PROMPTS}
        return {p: model.generate(p, max_new_tokens=n).text for p, n in most.items()}


@pytest.fixture(scope="module")
def sampled(trained_bundle: Path) -> str:
    """What it writes behind the first prompt with these options."""
    with serving.load(trained_bundle, threads=1, capacity=CONTEXT) as model:
        return model.generate(PROMPTS[0], **OPTIONS).text  # type: ignore[arg-type]


class Service(NamedTuple):
    """A process that listens at ``path`` and tells ``states`` what it does."""

    process: "subprocess.Popen[bytes]"
    path: Path
    states: socket.socket

    def connect(self, prompt: str) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(60)
        client.connect(str(self.path))
        client.sendall(prompt.encode())
        client.shutdown(socket.SHUT_WR)
        return client

    def ask(self, prompt: str) -> str:
        with self.connect(prompt) as client, client.makefile("rb") as answer:
            return answer.read().decode()

    def wait_for(self, state: str) -> None:
        while self.states.recv(100) != state.encode():
            pass


@pytest.fixture
def states(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as states:
        states.bind(str(tmp_path / "notify"))
        states.settimeout(60)
        yield states


@pytest.fixture
def service(package: Path, states: socket.socket, tmp_path: Path) -> Iterator[Service]:
    if shutil.which("systemd-socket-activate") is None:
        pytest.skip("no systemd-socket-activate (Debian: systemd)")
    path = tmp_path / "socket"
    command = ["systemd-socket-activate", f"--listen={path}"]
    command += [f"--setenv=NOTIFY_SOCKET={tmp_path / 'notify'}", "--setenv=WATCHDOG_USEC=200000"]
    with subprocess.Popen([*command, package / "bin/llm", "serve"]) as process:
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.01)
        yield Service(process, path, states)
        process.kill()


def test_text_comes_back_and_systemd_hears_of_it(
    service: Service, texts: dict[str, str], sampled: str
) -> None:
    assert service.ask(PROMPTS[0]) == texts[PROMPTS[0]]
    service.wait_for("READY=1")
    for _ in range(3):  # idle too
        service.wait_for("WATCHDOG=1")
    # Others wait for their turn.
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        assert list(pool.map(service.ask, PROMPTS)) == [texts[prompt] for prompt in PROMPTS]

    # A line of options is for the prompt behind it alone.
    line = " ".join(f"{name}={value}" for name, value in OPTIONS.items())
    assert service.ask(f"#!llm {line}\n{PROMPTS[0]}") == sampled
    assert service.ask(f"#!llm\n{PROMPTS[0]}") == texts[PROMPTS[0]]

    # What one client does wrong is its own matter.
    for wrong in ("heat=1", "top_k=-1", "top_p=2", "seed=1.5", "temperature=", "temperature=nan"):
        assert service.ask(f"#!llm {wrong}\n{PROMPTS[0]}") == ""
    assert service.ask(f"#!llm seed=1 {PROMPTS[0]}") == ""
    service.connect(PROMPTS[0]).close()
    assert service.ask("x = 1\n" * 100) == ""
    with pytest.raises(ConnectionError):
        service.ask("y" * 1_000_000)
    assert service.ask("") == ""
    assert service.ask(PROMPTS[1]) == texts[PROMPTS[1]]

    with service.connect(PROMPTS[2]) as client:
        answer = client.recv(1)
        service.process.send_signal(signal.SIGTERM)
        while data := client.recv(1000):
            answer += data
    assert answer.decode() == texts[PROMPTS[2]]
    service.wait_for("STOPPING=1")
    assert service.process.wait(60) == 0


def test_without_systemd_only_its_user_may_connect(
    package: Path, states: socket.socket, texts: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    path.touch()  # an earlier process left it
    environment = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify")}
    with subprocess.Popen([package / "bin/llm", "serve", path], env=environment) as process:
        service = Service(process, path, states)
        service.wait_for("READY=1")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert service.ask(PROMPTS[0]) == texts[PROMPTS[0]]
        process.terminate()
        assert process.wait(60) == 0


def test_refusals(package: Path, tmp_path: Path) -> None:
    def said(*arguments: object) -> str:
        command = [package / "bin/llm-serve", *arguments]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.returncode == 1
        return done.stderr

    assert "usage" in said()
    assert "usage" in said(package / "bundle", "many")
    assert "no socket to listen on" in said(package / "bundle", CONTEXT)
    assert "no socket to listen on" in said(package / "bundle", CONTEXT, tmp_path / ("x" * 200))
    assert said(tmp_path / "none", CONTEXT, tmp_path / "socket").count("\n") == 1
