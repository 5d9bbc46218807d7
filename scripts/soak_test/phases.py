"""The course of a soak: rounds of phases, and what must be true after each."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import psutil

from scripts.soak_test import clients
from scripts.soak_test.answers import BrokenAnswerError
from scripts.soak_test.cases import Case
from scripts.soak_test.clients import STUCK_SECONDS, Behaviour, Client
from scripts.soak_test.malformed import malformed_requests
from scripts.soak_test.server import Sample, Server
from scripts.soak_test.tally import Tally

# What clients do, and how often of a hundred.
Mix = dict[Behaviour, int]
_ANSWERS: Mix = {clients.asks: 40, clients.streams: 50, clients.reads_slowly: 10}
_LEAVING: Mix = {
    clients.asks: 25,
    clients.streams: 25,
    clients.leaves_before_the_answer: 15,
    clients.leaves_in_the_stream: 15,
    clients.leaves_in_the_body: 10,
    clients.stops_reading: 10,
}
_NONSENSE: Mix = {
    clients.asks: 20,
    clients.streams: 20,
    clients.sends_nonsense: 50,
    clients.stays_half_open: 10,
}
_EVERYTHING: Mix = {
    clients.asks: 25,
    clients.streams: 30,
    clients.reads_slowly: 5,
    clients.leaves_before_the_answer: 10,
    clients.leaves_in_the_stream: 10,
    clients.leaves_in_the_body: 5,
    clients.stops_reading: 5,
    clients.sends_nonsense: 7,
    clients.stays_half_open: 3,
}
PHASES = {
    "answers": _ANSWERS,
    "clients that leave": _LEAVING,
    "nonsense": _NONSENSE,
    "everything": _EVERYTHING,
}

# After a phase everything must have ended within so many seconds.
_IDLE_SECONDS = 15.0
_SAMPLE_SECONDS = 0.5
_IDLE = ("serve_llm_slots_in_use", "serve_llm_queue_length", "serve_llm_sequences")


@dataclass(frozen=True)
class Plan:
    """How much is asked, by how many clients at a time, in how many rounds of all phases.

    With ``outlasts`` half-open connections are held until the server closes them: half a minute.
    """

    requests: int
    clients: int
    rounds: int
    seed: int
    outlasts: bool


async def soak(server: Server, cases: list[Case], plan: Plan, tally: Tally) -> list[Sample]:
    """Carry out a plan, up to the first breach.

    Returns what the server took meanwhile, about twice a second.
    """
    samples: list[Sample] = []
    sampling = asyncio.create_task(_sample(server, tally, samples))
    draw = random.Random(plan.seed)
    try:
        async with _client(server, cases, draw.random(), tally) as client:
            holding = asyncio.create_task(_hold(client, plan))
            size = plan.requests // (plan.rounds * len(PHASES))
            for number in range(plan.rounds):
                for name, mix in PHASES.items():
                    if tally.breaches:
                        break
                    await _phase(server, cases, mix, size, plan.clients, draw.random(), tally)
                    await _check_idle(server, f"round {number + 1}, {name}", tally)
            await holding
    except (psutil.NoSuchProcess, ValueError):
        tally.breach(f"the server ended with code {server.process.poll()}")
    finally:
        sampling.cancel()
        await asyncio.gather(sampling, return_exceptions=True)
    return samples


async def _hold(client: Client, plan: Plan) -> None:
    if plan.outlasts:
        await clients.outlasts_the_server(client)


async def _phase(
    server: Server,
    cases: list[Case],
    mix: Mix,
    requests: int,
    count: int,
    seed: float,
    tally: Tally,
) -> None:
    """Let ``count`` clients do so many ``requests`` together."""
    waiting = iter(range(requests))

    async def run(client: Client) -> None:
        for _ in waiting:
            if tally.breaches:
                return
            (behaviour,) = client.draw.choices([*mix], [*mix.values()])
            tally.requests += 1
            tally.outcomes[behaviour.__name__.replace("_", " ")] += 1
            await _act(client, behaviour)

    async with _client(server, cases, seed, tally) as client:
        await asyncio.gather(*(run(client) for _ in range(count)))


async def _act(client: Client, behaviour: Behaviour) -> None:
    try:
        await behaviour(client)
    except (httpx.TimeoutException, TimeoutError):
        client.tally.breach(f"{behaviour.__name__}: nothing came for {STUCK_SECONDS:.0f} s")
    except BrokenAnswerError as error:
        client.tally.breach(f"{behaviour.__name__}: {error}")
    except (httpx.TransportError, OSError) as error:
        # Those that leave in the middle may see a reset; those that wait for an answer must not.
        if behaviour in (clients.asks, clients.streams, clients.reads_slowly):
            client.tally.breach(f"{behaviour.__name__}: {type(error).__name__} {error}")
        else:
            client.tally.outcomes["connections lost while misbehaving"] += 1


@asynccontextmanager
async def _client(
    server: Server, cases: list[Case], seed: float, tally: Tally
) -> AsyncIterator[Client]:
    # A connection is used again only while the server surely keeps it open.
    limits = httpx.Limits(max_connections=None, keepalive_expiry=2)
    small = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)]
    transport = httpx.AsyncHTTPTransport(limits=limits, socket_options=small)
    options = {"base_url": server.url, "timeout": STUCK_SECONDS}
    async with (
        httpx.AsyncClient(limits=limits, **options) as http,  # type: ignore[arg-type]
        httpx.AsyncClient(transport=transport, **options) as slow,  # type: ignore[arg-type]
    ):
        draw = random.Random(seed)
        yield Client(server.port, http, slow, cases, malformed_requests(), draw, tally)


async def _check_idle(server: Server, where: str, tally: Tally) -> None:
    """All slots must be free and the queue empty, and the worker the same as at the beginning."""
    values: dict[str, float] = {}
    try:
        async with asyncio.timeout(_IDLE_SECONDS), httpx.AsyncClient(timeout=5) as http:
            while not values or any(values[name] for name in _IDLE):
                text = (await http.get(f"{server.url}/metrics")).text
                values = dict(_metrics(text))
                await asyncio.sleep(0.02)
    except (TimeoutError, httpx.HTTPError) as error:
        busy = {name: value for name, value in values.items() if name in _IDLE and value}
        tally.breach(f"{where}: not idle afterwards ({type(error).__name__}): {busy}")
    else:
        tally.outcomes["phases that ended idle"] += 1
    if values.get("serve_llm_worker_restarts_total"):
        tally.breach(f"{where}: the worker died")


def _metrics(text: str) -> list[tuple[str, float]]:
    """Names and values of the metrics of the only model."""
    lines = [line for line in text.splitlines() if line.endswith(tuple("0123456789"))]
    return [
        (line.partition("{")[0], float(line.rpartition(" ")[2]))
        for line in lines
        if line.partition("{")[2].startswith('model="model"}')
    ]


async def _sample(server: Server, tally: Tally, samples: list[Sample]) -> None:
    while True:
        samples.append(server.sample(tally.requests))
        await asyncio.sleep(_SAMPLE_SECONDS)
