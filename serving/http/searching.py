"""The choices of one request that a beam search finds: known at its end, and all at once."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Self

from serving.beam_search import BeamParameters
from serving.decoding import Token
from serving.errors import UserError
from serving.http.errors import invalid
from serving.http.generating import Generation, merged
from serving.http.request_record import RequestRecord
from serving.http.state import ServerState
from serving.result import Generation as Result
from serving.worker.messages import Request


def beam_parameters(given: Mapping[str, Any], n: int) -> BeamParameters:
    """What is ``given`` of a search that shall find ``n`` sequences; raises ApiError."""
    beams = given.get("num_beams", 1)
    searches = beams > 1
    if searches and n > beams:
        raise invalid("n", f"A search with {beams} beams finds {beams} sequences, not {n}.")
    try:
        return BeamParameters(**given, num_return_sequences=n if searches else None)
    except UserError as error:
        raise invalid("num_beams", str(error)) from error


@dataclass(frozen=True, slots=True)
class Search(Generation):
    """The ``n`` best sequences of each prompt. A search is one sequence to the worker's queue."""

    beams: BeamParameters = field(default_factory=BeamParameters)

    @classmethod
    def of(
        cls, generation: Generation, beams: BeamParameters, *, stream: bool
    ) -> Generation | Self:
        """The search for a generation's choices; the generation itself if there is one beam.

        Raises ApiError if a search shall be streamed.
        """
        if beams.num_beams == 1:
            return generation
        if stream:
            raise invalid(
                "stream",
                "No token is certain before a beam search ends: leave 'stream' out, or take "
                "num_beams 1.",
            )
        return cls(
            generation.model,
            generation.caller,
            generation.prompts,
            generation.options,
            generation.n,
            generation.priority,
            beams,
        )

    @property
    def sequences(self) -> int:
        """How many the worker runs."""
        return len(self.prompts)

    def requests(self, seconds: float) -> list[Request]:
        """One for each prompt."""
        return [
            Request(
                prompt, self.options, self.priority, self.caller.client, seconds, beams=self.beams
            )
            for prompt in self.prompts
        ]

    async def run(
        self, state: ServerState, record: RequestRecord
    ) -> AsyncGenerator[tuple[int, Token], None]:
        """Yield each choice's number and its last token, which has all of its text.

        Raises as Generation.run does.
        """
        with self.admitted(state, record):
            clocks = [
                state.metrics.token_clock(self.model.name, record) for _ in range(self.choices)
            ]
            requests = self.requests(state.limits.request_seconds)
            async with aclosing(merged([self._found(request) for request in requests])) as found:
                async for prompt, (rank, result) in found:
                    choice = self.n * prompt + rank
                    clocks[choice].tick(len(result.token_ids))
                    last = result.token_ids[-1]
                    yield choice, Token(choice, last, result.text, result.finish_reason)

    async def _found(self, request: Request) -> AsyncGenerator[tuple[int, Result], None]:
        """Yield what a search found, best first."""
        for ranked in enumerate(await self.model.worker.search(request)):
            yield ranked
