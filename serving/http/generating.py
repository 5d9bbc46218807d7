"""The choices of one request: their sequences run side by side, their tokens come as one stream."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from serving.decoding import Token
from serving.engine import IntArray
from serving.http.access import Caller
from serving.http.request_record import RequestRecord
from serving.http.sampling_options import SEEDS
from serving.http.served_model import ServedModel
from serving.http.state import ServerState
from serving.sequences import SequenceOptions
from serving.worker.messages import Request

Event = TypeVar("Event")


@dataclass(frozen=True, slots=True)
class Generation:
    """What is to be generated: ``n`` choices for each of ``prompts``, of token ids [length].

    Choice number ``i`` is of prompt ``i // n``. For ``priority`` see request_queue.Job.
    """

    model: ServedModel
    caller: Caller
    prompts: Sequence[IntArray]
    options: SequenceOptions
    n: int = 1
    priority: int = 0

    @property
    def choices(self) -> int:
        """How many there are."""
        return self.n * len(self.prompts)

    @property
    def sequences(self) -> int:
        """How many the worker runs."""
        return self.choices

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, each counted once."""
        return sum(len(prompt) for prompt in self.prompts)

    @property
    def most_tokens(self) -> int:
        """Most tokens that it may take, with those of the prompts."""
        most = self.options.get("max_new_tokens")
        room = [
            self.model.capacity - len(prompt) if most is None else most for prompt in self.prompts
        ]
        return self.prompt_tokens + self.n * sum(room)

    def requests(self, seconds: float) -> list[Request]:
        """One for each choice; of the choices of a prompt each has a seed of its own.

        After so many ``seconds`` they are given up.
        """
        return [
            Request(prompt, self._options(number), self.priority, self.caller.client, seconds)
            for prompt in self.prompts
            for number in range(self.n)
        ]

    def _options(self, number: int) -> SequenceOptions:
        seed = self.options.get("seed")
        if seed is None:
            return self.options
        return {**self.options, "seed": (seed + number) % SEEDS}

    async def run(
        self, state: ServerState, record: RequestRecord
    ) -> AsyncGenerator[tuple[int, Token], None]:
        """Yield each choice's number and its next token, as they come; closing it cancels all.

        Raises UserError if one of them can't be run or finished, and ApiError if the caller asks
        for too much.
        """
        with self.admitted(state, record):
            requests = self.requests(state.limits.request_seconds)
            streams = [self.model.worker.generate(request) for request in requests]
            clocks = [state.metrics.token_clock(self.model.name, record) for _ in streams]
            async with aclosing(merged(streams)) as tokens:
                async for choice, token in tokens:
                    clocks[choice].tick()
                    if choice % self.n == 0:  # its prompt is counted once, too
                        record.cached_tokens += token.reused
                    yield choice, self._without_end(token)

    @contextmanager
    def admitted(self, state: ServerState, record: RequestRecord) -> Iterator[None]:
        """Be one of the caller's requests; raises ApiError if the caller asks for too much."""
        self.model.check_room(self.sequences)
        with self.caller.admitted(state, record, self.most_tokens):
            state.metrics.record_prompt(self.model.name, self.prompt_tokens)
            record.prompt_tokens = self.prompt_tokens
            yield

    def _without_end(self, token: Token) -> Token:
        """An EOS token is no part of the answer, and so its log-probability isn't either."""
        is_end = token.finish_reason == "stop" and token.token_id in self.model.eos
        return replace(token, logprobs=None) if is_end else token


async def merged(
    streams: Sequence[AsyncGenerator[Event]],
) -> AsyncGenerator[tuple[int, Event], None]:
    """Take from all streams as they come, with their numbers; an error of one ends all."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as stream:
            async for only in stream:
                yield 0, only
        return
    # So small that a reader who is slow slows all pumps down.
    arrivals: asyncio.Queue[tuple[int, Event | _End]] = asyncio.Queue(len(streams))
    pumps = [
        asyncio.create_task(_pump(number, stream, arrivals))
        for number, stream in enumerate(streams)
    ]
    unfinished = len(streams)
    try:
        while unfinished:
            number, event = await arrivals.get()
            if not isinstance(event, _End):
                yield number, event
            elif event.error is not None:
                raise event.error
            else:
                unfinished -= 1
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class _End:
    """The end of a stream, and why if it isn't a good one."""

    error: Exception | None = None


async def _pump(
    number: int,
    stream: AsyncGenerator[Event],
    arrivals: "asyncio.Queue[tuple[int, Event | _End]]",
) -> None:
    try:
        async with aclosing(stream):
            async for event in stream:
                await arrivals.put((number, event))
    except Exception as error:
        await arrivals.put((number, _End(error)))
    else:
        await arrivals.put((number, _End()))
