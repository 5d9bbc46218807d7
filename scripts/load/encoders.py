"""Encoders under load: single texts over HTTP, beside the bare engine with as many at a time."""

import asyncio
import json
import random
import statistics
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time

import psutil

import serving
from scripts.load.server_process import free_port, start_server

PAUSE_SECONDS = 0.2


@dataclass(frozen=True)
class Load:
    """Texts, so many ``clients`` at a time."""

    clients: int
    texts: list[str]


@dataclass(frozen=True)
class Rates:
    """What a load came to, as medians over rounds; the server's ``ratio`` is to the engine.

    Milliseconds of processor time are those of one request: of the engine, and of both processes of
    the server. A machine that does other work too changes them little.
    """

    clients: int
    engine_requests_per_second: float
    server_requests_per_second: float
    engine_tokens_per_second: float
    server_tokens_per_second: float
    ratio: float
    server_latency_median: float
    engine_processor_ms: float
    server_processor_ms: float


@dataclass(frozen=True)
class Round:
    """A load once: seconds, and seconds of processor time, of the engine and of the server."""

    engine: float
    engine_processor: float
    server: float
    server_processor: float
    tokens: int
    latencies: list[float]


class Contestants:
    """A bundle opened in this process, and served by another."""

    def __init__(self, bundle: Path, threads: int) -> None:
        self._model = serving.load_encoder(bundle, threads=threads)
        if self._model.encoder.task != "embed":
            raise ValueError(f"The bundle is for {self._model.encoder.task}: give one for embed.")
        self._port = free_port()
        program = str(Path(sys.executable).with_name("serve-llm"))
        command = [program, "http", f"model={bundle}", f"--port={self._port}"]
        command += [f"--threads={threads}", "--log-level=warning"]
        server = start_server(command, f"http://127.0.0.1:{self._port}/ready")
        parent = psutil.Process(server.pid)
        self._processes = [parent, *parent.children(recursive=True)]

    def texts(self, count: int, tokens: int, chance: random.Random) -> list[str]:
        """Texts of about so many tokens, drawn from the vocabulary."""
        tokenizer = self._model.texts.tokenizer
        size = tokenizer.get_vocab_size()
        drawn = ([chance.randrange(size) for _ in range(tokens)] for _ in range(count))
        return [tokenizer.decode(ids, skip_special_tokens=True) for ids in drawn]

    def run_engine(self, load: Load) -> tuple[float, float, int]:
        """Seconds, processor time and tokens of all texts, ``clients`` in each call."""
        begin, begin_processor, tokens = perf_counter(), process_time(), 0
        for start in range(0, len(load.texts), load.clients):
            result = self._model.embed(load.texts[start : start + load.clients])
            tokens += sum(result.prompt_tokens)
        return perf_counter() - begin, process_time() - begin_processor, tokens

    def run_server(self, load: Load) -> tuple[float, float, list[float]]:
        """Seconds and processor time of all texts, and seconds of each request."""
        waiting, latencies = deque(load.texts), list[float]()

        async def client() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            while waiting:
                begin = perf_counter()
                await _embed(reader, writer, waiting.popleft())
                latencies.append(perf_counter() - begin)
            writer.close()

        async def run() -> None:
            await asyncio.gather(*(client() for _ in range(load.clients)))

        begin, begin_processor = perf_counter(), self._processor_time()
        asyncio.run(run())
        return perf_counter() - begin, self._processor_time() - begin_processor, latencies

    def _processor_time(self) -> float:
        times = [process.cpu_times() for process in self._processes]
        return sum(each.user + each.system for each in times)


async def _embed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, text: str) -> None:
    """Ask once. By hand, for a client that takes much time would count as the server's."""
    body = json.dumps({"model": "model", "input": text, "encoding_format": "base64"}).encode()
    head = (
        "POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    status, *headers = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    named = dict(line.lower().split(b": ", 1) for line in headers if line)
    answer = await reader.readexactly(int(named[b"content-length"]))
    if b" 200 " not in status:
        raise RuntimeError(f"{status!r}: {answer!r}")


def measure(
    bundle: Path, clients: list[int], requests: int, tokens: int, repeats: int, threads: int
) -> list[Rates]:
    """Serve single texts of ``tokens`` tokens; the engine and the server take turns.

    Each client sends so many ``requests``. Raises ValueError for a bundle that doesn't embed.
    """
    contestants, chance = Contestants(bundle, threads), random.Random(1)
    rounds: dict[int, list[Round]] = {}
    for round_number in range(-1, repeats):
        for number in clients:
            load = Load(number, contestants.texts(number * requests, tokens, chance))
            time.sleep(PAUSE_SECONDS)
            if round_number % 2:
                engine = contestants.run_engine(load)
                server = contestants.run_server(load)
            else:
                server = contestants.run_server(load)
                engine = contestants.run_engine(load)
            if round_number >= 0:  # the first one warmed up
                ran = Round(*engine[:2], *server[:2], engine[2], server[2])
                rounds.setdefault(number, []).append(ran)
    return [_rates(number, requests, ran) for number, ran in rounds.items()]


def _rates(clients: int, requests: int, rounds: list[Round]) -> Rates:
    total = clients * requests
    return Rates(
        clients,
        statistics.median(total / each.engine for each in rounds),
        statistics.median(total / each.server for each in rounds),
        statistics.median(each.tokens / each.engine for each in rounds),
        statistics.median(each.tokens / each.server for each in rounds),
        statistics.median(each.engine / each.server for each in rounds),
        statistics.median(latency for each in rounds for latency in each.latencies),
        statistics.median(1000 * each.engine_processor / total for each in rounds),
        statistics.median(1000 * each.server_processor / total for each in rounds),
    )


def lines(rates: list[Rates]) -> list[str]:
    """A line for each number of clients."""
    return [
        "clients: requests/s and tokens/s of the engine, of the server; median of their ratios; "
        "median latency; processor time of a request",
        *(
            f"{each.clients}: {each.engine_requests_per_second:.1f}, "
            f"{each.engine_tokens_per_second:,.0f}; {each.server_requests_per_second:.1f}, "
            f"{each.server_tokens_per_second:,.0f}; {each.ratio:.2f}; "
            f"{1000 * each.server_latency_median:.0f} ms; {each.engine_processor_ms:.1f} and "
            f"{each.server_processor_ms:.1f} ms"
            for each in rates
        ),
    ]
