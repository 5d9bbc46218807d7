"""Triton's server in NVIDIA's container, with what our models need installed in it."""

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.triton_server.environment import SERVER, requirements
from scripts.triton_server.launch import Launch
from serving.bundle_key import KEY_VARIABLE
from serving.errors import UserError

IMAGE = "nvcr.io/nvidia/tritonserver"

_DOCKERFILE = """\
FROM {image}
RUN PIP_BREAK_SYSTEM_PACKAGES=1 pip install --no-cache-dir {requirements}
"""


@dataclass(frozen=True)
class Engine:
    """A program that runs containers."""

    program: str

    def newest_image(self) -> str | None:
        """The newest of Triton's images with Python that this machine has, or None."""
        listed = self._run(["image", "ls", "--format", "{{.Repository}}:{{.Tag}}"]).split()
        return max(
            (name for name in listed if name.startswith(IMAGE) and name.endswith("-py3")),
            default=None,
        )

    def build(self, image: str) -> str:
        """Our image on top of ``image``, which is fetched if need be; built once."""
        packages = [f"'{line}'" for line in requirements() if not line.startswith(SERVER)]
        dockerfile = _DOCKERFILE.format(image=image, requirements=" ".join(packages))
        with tempfile.TemporaryDirectory() as nothing:
            return self._run(["build", "--quiet", "--file", "-", nothing], dockerfile).strip()

    def _run(self, arguments: list[str], text: str = "") -> str:
        done = subprocess.run(
            [self.program, *arguments], input=text, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise UserError(
                f"{self.program} {arguments[0]} failed ({done.stderr.strip()}): mend that, or "
                "use --wheel."
            )
        return done.stdout


def find_engine() -> Engine | None:
    """Docker or Podman, if it answers."""
    for program in ("docker", "podman"):
        if shutil.which(program):
            done = subprocess.run([program, "info"], capture_output=True, check=False)
            if done.returncode == 0:
                return Engine(program)
    return None


def container_launch(
    engine: Engine, image: str, repository: Path, options: Sequence[str]
) -> Launch:
    """How to start a container of ``image`` on a repository, which it can't change."""
    name = f"export-llm-triton-{uuid.uuid4().hex[:12]}"
    command = [engine.program, "run", "--rm", f"--name={name}", "--network=host", "--shm-size=1g"]
    directories = [repository, *_linked(repository)]
    command += [f"--volume={directory}:{directory}:ro" for directory in directories]
    if KEY_VARIABLE in os.environ:
        command.append(f"--env={KEY_VARIABLE}")
    if Path("/dev/nvidiactl").exists():
        command += ["--gpus=all"] if engine.program == "docker" else ["--device=nvidia.com/gpu=all"]
    command += [engine.build(image), "tritonserver", f"--model-repository={repository}", *options]
    return Launch(command, removal=[engine.program, "rm", "--force", name])


def _linked(repository: Path) -> Iterator[Path]:
    """Directories elsewhere that links in a repository name: bundles that weren't copied."""
    targets = {path.resolve() for path in repository.rglob("*") if path.is_symlink()}
    yield from sorted(path for path in targets if not path.is_relative_to(repository))
