"""Chat templates against transformers' own rendering."""

from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from serving.chat import ChatTemplate, Message
from serving.errors import UserError

MESSAGES: list[Message] = [
    {"role": "system", "content": "Be <brief> & 'kind'."},
    {"role": "user", "content": "  Hallo, schöne Welt! \n"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "Bye"},
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' "
        "+ message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "blocks": """{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- continue %}
    {%- endif %}
    {% if loop.index > 3 %}{% break %}{% endif %}
    [{{ message.role | upper }}] {{ message.content | trim }}{{ eos_token }}
{% endfor %}
""",
    "tojson": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2, sort_keys=true) }}",
    "namespace": (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
        "{% endfor %}{{ ns.n }}{{ dict(a=1) | tojson }}"
    ),
    "tools": "{% if tools is none %}none{% endif %}{% if documents %}docs{% endif %}",
    "generation": (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    ),
    "date": "{{ strftime_now('%Y') }}",
}


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_rendering_equals_transformers(name: str, prompt: bool) -> None:
    expected, _ = render_jinja_template(
        conversations=[MESSAGES],
        chat_template=TEMPLATES[name],
        add_generation_prompt=prompt,
        **SPECIAL,
    )
    ours = ChatTemplate(TEMPLATES[name], SPECIAL).render(MESSAGES, add_generation_prompt=prompt)
    assert ours == expected[0]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "refuses .*Roles must alternate"),
        ("{{ messages.append(1) }}", "refuses this conversation"),
        ("{{ ''.__class__.__mro__ }}", "refuses this conversation"),
    ],
)
def test_refusals_and_escapes_are_one_sentence(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ChatTemplate(source, {}).render(MESSAGES)


def test_invalid_templates_are_one_sentence() -> None:
    with pytest.raises(UserError, match="template can't be read"):
        ChatTemplate("{% for %}", {})


def test_rendering_leaves_the_messages_alone() -> None:
    before: list[Any] = [dict(message) for message in MESSAGES]
    ChatTemplate("{% for m in messages %}{{ m }}{% endfor %}", {}).render(MESSAGES)
    assert before == MESSAGES
