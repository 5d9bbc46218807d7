"""``/v1/chat/completions``."""

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from serving.http.access import Caller, find_generator, requires
from serving.http.answer_head import AnswerHead
from serving.http.answering import answer_stream, answer_whole
from serving.http.api_description import BEARER, ERRORS, answers
from serving.http.chat_answers import ChatAnswer, ChatStream
from serving.http.encoder_decoder import refuse_encoder_decoder
from serving.http.errors import invalid, unsupported
from serving.http.generating import Generation
from serving.http.messages import template_messages
from serving.http.request_checks import check_body, check_generation
from serving.http.response_format import constraint_of, constraint_param
from serving.http.sampling_options import generate_options
from serving.http.schemas.answers import ChatCompletion
from serving.http.schemas.chat import ChatRequest
from serving.http.served_model import ServedModel
from serving.http.state import state_of
from serving.http.tool_prompts import ToolUse, tool_use

router = APIRouter(dependencies=[BEARER])
_caller = Depends(requires("generate"))


@router.post("/v1/chat/completions", responses={**answers(ChatCompletion), **ERRORS})
async def create_chat_completion(
    body: ChatRequest, request: Request, caller: Annotated[Caller, _caller]
) -> Response:
    """Go on with a conversation; with ``stream`` as server-sent events."""
    limits = state_of(request).limits
    model = find_generator(request, caller, body.model)
    refuse_encoder_decoder(model, "which reads sources and no conversations")
    check_body(body, limits)
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs", "'top_logprobs' is only allowed when 'logprobs' is true.")
    tools = _tools(body, model)
    generation = Generation(
        model=model,
        caller=caller,
        prompts=[await model.encode_chat(template_messages(body), tools.tools if tools else None)],
        options=generate_options(
            body,
            model,
            max_new_tokens=body.max_completion_tokens or body.max_tokens,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            constraint=constraint_of(body, tools, limits),
        ),
        n=body.n or 1,
        priority=body.priority or 0,
    )
    check_generation(generation, limits, "messages")
    head = AnswerHead.of(model, "chatcmpl")
    texts = model.texts if body.logprobs else None
    param = constraint_param(body, tools)
    if body.stream:
        stream = ChatStream(head, generation.n, tools, texts, body.includes_usage)
        return await answer_stream(request, generation, stream, param)
    answer = ChatAnswer(head, generation.n, tools, texts)
    return await answer_whole(request, generation, answer, param)


def _tools(body: ChatRequest, model: ServedModel) -> ToolUse | None:
    tools = tool_use(body)
    template = model.prompts.chat_template
    if tools is not None and template is not None and not template.takes_tools:
        raise unsupported("tools", "This model's chat template has no place for tools.")
    return tools
