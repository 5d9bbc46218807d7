"""The Triton server that tests share, and its log beside a test that fails.

Starting it takes seconds. With ``--dist loadgroup``, which scripts/test passes, one worker of
pytest-xdist runs all of them, if each file says ``pytestmark = pytest.mark.xdist_group("triton")``.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from scripts.triton_server.server import Server
from serving.bundle import file_info
from serving.triton.config import DynamicBatching
from serving.triton.repository import Deployment, write_version
from serving.triton.settings import EncoderSettings, Settings
from tests.encoders import encoder_fixture
from tests.serving.test_detokenizer import sentencepiece_style
from tests.serving.tiny_bundle import make_bundle
from tests.serving.triton.live_server import running_triton

# More tokens than any test waits for; the tiny model generates thousands a second.
ENDLESS = 200_000


@dataclass(frozen=True)
class Triton:
    """A server whose clients load and unload the models of ``repository``, empty at first."""

    server: Server
    repository: Path
    log: Path

    @property
    def url(self) -> str:
        return self.server.addresses.url

    @property
    def grpc(self) -> str:
        return self.server.addresses.grpc

    def load(self, model: str) -> httpx.Response:
        url = f"{self.url}/v2/repository/models/{model}/load"
        try:
            return httpx.post(url, timeout=60)
        except httpx.ReadTimeout:
            # It gave up a process that was late to say that it lives, and waits for it to end: see
            # "A load that never ends" in docs/triton.md.
            processes = psutil.Process(self.server.pid).children(recursive=True)
            max(processes, key=psutil.Process.create_time).kill()
            return httpx.post(url, timeout=60)

    def unload(self, model: str, **parameters: bool) -> httpx.Response:
        url = f"{self.url}/v2/repository/models/{model}/unload"
        return httpx.post(url, json={"parameters": parameters}, timeout=60)

    def serve(self, bundle: Path, name: str, **settings: object) -> str:
        """Write a bundle into the repository, as a model or its next version, and load it."""
        write_version(Deployment(bundle, name, Settings.model_validate(settings)), self.repository)
        self.load(name).raise_for_status()
        return name

    def serve_encoder(self, bundle: Path, name: str, **batching: Any) -> str:
        """The same for an encoder's bundle."""
        deployment = Deployment(
            bundle, name, EncoderSettings(threads=1), batching=DynamicBatching(**batching)
        )
        write_version(deployment, self.repository)
        self.load(name).raise_for_status()
        return name

    def generate(self, model: str, **body: object) -> dict[str, object]:
        """The answer of the generate endpoint, or its error."""
        answer = httpx.post(f"{self.url}/v2/models/{model}/generate", json=body, timeout=60)
        return dict(answer.json())

    def metric(self, name: str, model: str) -> float:
        """A metric of a model's, of all its instances."""
        lines = httpx.get(self.server.addresses.metrics).text.splitlines()
        return sum(
            float(line.rsplit(maxsplit=1)[1])
            for line in lines
            if line.startswith(name) and f'model="{model}"' in line
        )


@pytest.fixture(scope="session")
def shared_triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    directory = tmp_path_factory.mktemp("triton")
    repository, log = directory / "models", directory / "log"
    repository.mkdir()
    with running_triton(repository, log) as server:
        yield Triton(server, repository, log)


@pytest.fixture
def triton(shared_triton: Triton) -> Iterator[Triton]:
    """The shared server; what it logs meanwhile is shown if the test fails."""
    begin = shared_triton.log.stat().st_size
    yield shared_triton
    with shared_triton.log.open() as log:
        log.seek(begin)
        print(log.read())


@pytest.fixture(scope="session")
def trained(shared_triton: Triton, trained_bundle: Path) -> str:
    """A model that writes text; its tokenizer is a byte-level BPE."""
    return shared_triton.serve(trained_bundle, "trained", capacity=256)


@pytest.fixture(scope="session")
def fallback_bundle(trained_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights with a tokenizer as Llama 2's: bytes for what the vocabulary lacks."""
    bundle = tmp_path_factory.mktemp("fallback") / "bundle"
    shutil.copytree(trained_bundle, bundle)
    sentencepiece_style().save(str(bundle / "tokenizer.json"))
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["files"]["tokenizer.json"] = file_info(bundle / "tokenizer.json").model_dump()
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    return bundle


@pytest.fixture(scope="session")
def fallback(shared_triton: Triton, fallback_bundle: Path) -> str:
    return shared_triton.serve(fallback_bundle, "fallback", capacity=256)


@pytest.fixture(scope="session")
def endless(shared_triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with two slots that goes on for as long as a test wants."""
    directory = tmp_path_factory.mktemp("endless")
    graph = json.loads((make_bundle(directory / "short") / "bundle.json").read_text())["graph"]
    bundle = make_bundle(directory / "bundle", graph=graph | {"max_length": 2 * ENDLESS}, tokens={})
    return shared_triton.serve(bundle, "endless", capacity=2 * ENDLESS, slots=2, prefix_rows=0)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from a name of tests.encoders to its folder of ``checkpoint`` and ``bundle``."""
    return encoder_fixture(tmp_path_factory)
