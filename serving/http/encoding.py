"""A request's texts on their way through an encoder, within the limits of whoever sends them."""

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request

from serving.encoders.joining import Row
from serving.encoders.texts import EncodedText
from serving.errors import UserError
from serving.http.access import Caller
from serving.http.errors import from_user_error, invalid
from serving.http.event_stream import unless_disconnected
from serving.http.request_record import record_of
from serving.http.served_encoder import ServedEncoder
from serving.http.state import state_of


@dataclass(frozen=True, slots=True)
class EncodingCall:
    """Who asks which encoder; for ``priority`` see text_queue.TextJob.

    ``param`` is where the texts come from.
    """

    request: Request
    caller: Caller
    model: ServedEncoder
    param: str
    priority: int = 0

    async def rows(self, texts: Sequence[EncodedText]) -> list[list[Row]]:
        """What the graph gives for each text and each of its segments.

        Raises ApiError, and DisconnectedError if the client goes away.
        """
        state, record = state_of(self.request), record_of(self.request)
        most = state.limits.prompt_tokens
        longest = max(text.token_count for text in texts)
        if most is not None and longest > most:
            raise invalid(
                self.param,
                f"'{self.param}' asks for {longest} tokens, but at most {most} are allowed.",
            )
        tokens = sum(text.token_count for text in texts)
        with self.caller.admitted(state, record, tokens):
            record.prompt_tokens = tokens
            state.metrics.record_prompt(self.model.name, tokens)
            running = self.model.run(
                texts, self.priority, self.caller.client, state.limits.request_seconds
            )
            try:
                return await unless_disconnected(self.request.receive, running)
            except UserError as error:
                raise from_user_error(error, self.param) from error
