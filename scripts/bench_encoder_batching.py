"""Throughput of one-text requests to an encoder in Triton, with dynamic batching and without.

    python -m scripts.bench_encoder_batching BUNDLE [--rounds N] [--json FILE]

Texts are lines of Python's help. So many clients as each row says ask over gRPC, each for its next
text when it has an answer. Beside it, in this process, the bare engine: texts one by one, and as
many at a time as there are clients. Engines have one thread. Each round runs everything, in an
order that is drawn anew. Printed are medians over all rounds, and ratios to the engine's one by one
in the same round: texts a second, and texts a second of processor time of all that took part, which
are clients, server and model. On a machine that does other work too only the latter tells much.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil

import serving
from scripts.check_embeddings import lines
from scripts.triton_server.launch import Addresses
from scripts.triton_server.log import ServerLog
from scripts.triton_server.server import Server
from scripts.triton_server.wheel import wheel_launch
from serving.triton.repository import CONFIG, Deployment, write_version
from serving.triton.settings import EncoderSettings

CLIENTS = (1, 8, 32)
TEXTS = 64  # of a run
BATCHED, UNBATCHED = "batched", "unbatched"

Contestant = Callable[[list[str], int], object]


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement: texts a second, and a second of processor time."""

    rate: float
    processor_rate: float


def engine_one_by_one(model: serving.EncoderModel) -> Contestant:
    """Texts as they come, whatever the number of clients."""
    return lambda texts, _: [model.embed(text) for text in texts]


def engine_in_batches(model: serving.EncoderModel) -> Contestant:
    """As many texts at a time as there are clients."""
    return lambda texts, clients: [
        model.embed(texts[start : start + clients]) for start in range(0, len(texts), clients)
    ]


def triton(address: str, model: str) -> Contestant:
    """Clients that ask for one text at a time."""
    from tritonclient import grpc

    connections = [grpc.InferenceServerClient(address) for _ in range(max(CLIENTS))]
    outputs = [grpc.InferRequestedOutput("embeddings")]

    def ask(connection: grpc.InferenceServerClient, text: str) -> None:
        tensor = grpc.InferInput("text", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text.encode()]], np.object_))
        connection.infer(model, [tensor], outputs=outputs)

    def run(texts: list[str], clients: int) -> None:
        remaining = iter(texts)

        def client(connection: grpc.InferenceServerClient) -> None:
            for text in remaining:  # shared: a step of a list's iterator isn't interrupted
                ask(connection, text)

        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(client, connections[:clients]))

    return run


@contextmanager
def serving_both(bundle: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A Triton server with and without dynamic batching: its address and its process."""
    with tempfile.TemporaryDirectory() as directory:
        repository = Path(directory, "models")
        for name in (BATCHED, UNBATCHED):
            write_version(Deployment(bundle, name, EncoderSettings(threads=1)), repository)
        config = repository / UNBATCHED / CONFIG
        head, _, rest = config.read_text().partition("dynamic_batching {")
        config.write_text(head + rest.partition("\n}\n")[2])
        addresses = Addresses.free()
        launch = wheel_launch(repository, addresses.options)
        with (
            Path(directory, "log").open("w") as log,
            Server(launch, addresses, ServerLog(log, verbose=True)) as server,
        ):
            for _ in server.wait_until_ready():
                pass
            yield addresses.grpc, psutil.Process(server.pid)


def measure(
    run: Contestant, texts: list[str], clients: int, processes: list[psutil.Process]
) -> Run:
    """Run once; ``processes`` are those whose time counts."""
    before, begin = processor_seconds(processes), time.perf_counter()
    run(texts, clients)
    seconds = time.perf_counter() - begin
    used = processor_seconds(processes) - before
    return Run(len(texts) / seconds, len(texts) / used)


def processor_seconds(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    texts = lines()
    with (
        serving.load_encoder(arguments.bundle, threads=1) as model,
        serving_both(arguments.bundle) as (address, server),
    ):
        contestants = {
            "engine, one by one": engine_one_by_one(model),
            "engine, in batches": engine_in_batches(model),
            "Triton, dynamic batching": triton(address, BATCHED),
            "Triton, without": triton(address, UNBATCHED),
        }
        for run in contestants.values():
            run(texts[: max(CLIENTS)], max(CLIENTS))
        processes = [psutil.Process(), server, *server.children(recursive=True)]
        rounds = []
        for _ in range(arguments.rounds):
            chosen = random.sample(texts, TEXTS)
            cases = [(name, clients) for name in contestants for clients in CLIENTS]
            random.shuffle(cases)
            rounds.append(
                {case: measure(contestants[case[0]], chosen, case[1], processes) for case in cases}
            )
    report(list(contestants), rounds)
    if arguments.json:
        rows = [
            {"contestant": name, "clients": clients, "round": number, **asdict(run)}
            for number, each in enumerate(rounds)
            for (name, clients), run in each.items()
        ]
        arguments.json.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


def report(names: list[str], rounds: list[dict[tuple[str, int], Run]]) -> None:
    """Print a table of medians, with ratios in brackets."""
    print("| | clients | texts/s | texts/s of processor time |")
    print("| --- | --- | --- | --- |")
    for name in names:
        for clients in CLIENTS:
            cells = []
            for field in ("rate", "processor_rate"):
                rates = [getattr(each[name, clients], field) for each in rounds]
                first = [getattr(each[names[0], clients], field) for each in rounds]
                ratios = (own / other for own, other in zip(rates, first, strict=True))
                cells.append(f"{statistics.median(rates):.0f} ({statistics.median(ratios):.2f})")
            print(f"| {name} | {clients} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
