"""``/v1/completions``."""

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from serving.http.access import Caller, find_generator, requires
from serving.http.answer_head import AnswerHead
from serving.http.answering import answer_stream, answer_whole
from serving.http.api_description import BEARER, ERRORS, answers
from serving.http.completion_answers import CompletionAnswer, CompletionStream
from serving.http.errors import unsupported
from serving.http.generating import Generation
from serving.http.request_checks import check_body, check_generation
from serving.http.sampling_options import generate_options
from serving.http.schemas.answers import Completion
from serving.http.schemas.completions import CompletionRequest
from serving.http.state import state_of

# What OpenAI's API takes where a request doesn't say.
_MAX_TOKENS = 16

router = APIRouter(dependencies=[BEARER])
_caller = Depends(requires("generate"))


@router.post("/v1/completions", responses={**answers(Completion), **ERRORS})
async def create_completion(
    body: CompletionRequest, request: Request, caller: Annotated[Caller, _caller]
) -> Response:
    """Go on with texts or token ids; with ``stream`` as server-sent events."""
    limits = state_of(request).limits
    model = find_generator(request, caller, body.model)
    check_body(body, limits)
    _check_supported(body)
    generation = Generation(
        model=model,
        caller=caller,
        prompts=[await model.encode(prompt) for prompt in body.prompts],
        options=generate_options(
            body, model, max_new_tokens=body.max_tokens or _MAX_TOKENS, logprobs=body.logprobs
        ),
        n=body.n or 1,
        priority=body.priority or 0,
    )
    check_generation(generation, limits, "prompt")
    head = AnswerHead.of(model, "cmpl")
    echoes = _echoes(body, generation)
    texts = model.texts if body.logprobs is not None else None
    if body.stream:
        stream = CompletionStream(head, echoes, texts, body.includes_usage)
        return await answer_stream(request, generation, stream, None)
    return await answer_whole(request, generation, CompletionAnswer(head, echoes, texts), None)


def _check_supported(body: CompletionRequest) -> None:
    if body.suffix:
        raise unsupported("suffix", "This server doesn't fill in text before a suffix.")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise unsupported("best_of", "'best_of' must equal 'n': all texts are returned.")
    if body.echo and body.logprobs is not None:
        raise unsupported("echo", "'echo' can't be combined with 'logprobs'.")


def _echoes(body: CompletionRequest, generation: Generation) -> list[str]:
    """What each choice begins with."""
    if not body.echo:
        return [""] * generation.choices
    texts = [
        prompt if isinstance(prompt, str) else generation.model.decode(prompt)
        for prompt in body.prompts
    ]
    return [text for text in texts for _ in range(generation.n)]
