"""``/v1/completions``."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from serving.http.access import Caller, find_generator, requires
from serving.http.answer_head import AnswerHead
from serving.http.answering import answer_stream, answer_whole
from serving.http.api_description import BEARER, ERRORS, answers
from serving.http.completion_answers import CompletionAnswer, CompletionStream
from serving.http.errors import invalid, unsupported
from serving.http.generating import Generation
from serving.http.request_checks import check_body, check_generation
from serving.http.request_limits import RequestLimits
from serving.http.sampling_options import generate_options
from serving.http.schemas.answers import Completion
from serving.http.schemas.completions import CompletionRequest
from serving.http.searching import Search, beam_parameters
from serving.http.served_model import ServedModel
from serving.http.source_generation import source_generation
from serving.http.state import state_of

# What OpenAI's API takes where a request doesn't say.
_MAX_TOKENS = 16

_BEAMS = ("num_beams", "length_penalty", "early_stopping")
_LANGUAGES = ("source_language", "target_language")

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
    _check_supported(body, model)
    generation = await _generation(body, model, caller, limits)
    head = AnswerHead.of(model, "cmpl")
    echoes = _echoes(body, generation)
    texts = model.texts if body.logprobs is not None else None
    if body.stream:
        stream = CompletionStream(head, echoes, texts, body.includes_usage)
        return await answer_stream(request, generation, stream, None)
    return await answer_whole(request, generation, CompletionAnswer(head, echoes, texts), None)


async def _generation(
    body: CompletionRequest, model: ServedModel, caller: Caller, limits: RequestLimits
) -> Generation:
    if model.encoder_decoder is not None:
        options = generate_options(
            body, model, max_new_tokens=body.max_tokens, logprobs=body.logprobs
        )
        return await source_generation(
            model,
            caller,
            body.prompts,
            {**options, **_given(body, (*_BEAMS, *_LANGUAGES))},
            limits,
            param="prompt",
            n=body.n or 1,
            priority=body.priority or 0,
            stream=bool(body.stream),
        )
    most = body.max_tokens or _MAX_TOKENS
    options = generate_options(body, model, max_new_tokens=most, logprobs=body.logprobs)
    beams = beam_parameters(_given(body, _BEAMS), body.n or 1)
    if beams.num_beams > 1 and body.temperature is None:
        options["temperature"] = 0.0
    generation = Generation(
        model=model,
        caller=caller,
        prompts=[await model.encode(prompt) for prompt in body.prompts],
        options=options,
        n=body.n or 1,
        priority=body.priority or 0,
    )
    check_generation(generation, limits, "prompt")
    return Search.of(generation, beams, stream=bool(body.stream))


def _given(body: CompletionRequest, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(body, name)) is not None}


def _check_supported(body: CompletionRequest, model: ServedModel) -> None:
    if body.suffix:
        raise unsupported("suffix", "This server doesn't fill in text before a suffix.")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise unsupported("best_of", "'best_of' must equal 'n': all texts are returned.")
    if body.echo and body.logprobs is not None:
        raise unsupported("echo", "'echo' can't be combined with 'logprobs'.")
    if model.encoder_decoder is not None:
        if body.echo:
            raise invalid("echo", "This model's outputs don't go on from their prompts.")
        return
    for name in _LANGUAGES:
        if getattr(body, name) is not None:
            raise invalid(name, f"'{name}' is for encoder-decoders, and this model is none.")


def _echoes(body: CompletionRequest, generation: Generation) -> list[str]:
    """What each choice begins with."""
    if not body.echo:
        return [""] * generation.choices
    texts = [
        prompt if isinstance(prompt, str) else generation.model.decode(prompt)
        for prompt in body.prompts
    ]
    return [text for text in texts for _ in range(generation.n)]
