"""Vicuna's chat format (v1.1), which LLaVA models with its language model are asked in."""

from __future__ import annotations

from prunevid.export.families.family import ChatFormat

_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'user' %}USER: {% elif message['role'] == 'assistant' %}ASSISTANT: {% endif -%}
{% for content in message['content'] if content['type'] == 'KIND' %}<KIND>
{% endfor %}{% for content in message['content'] if content['type'] == 'text' %}{{ content['text'] }}{% endfor -%}
{% if message['role'] == 'assistant' %}</s>{% else %} {% endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}ASSISTANT:{% endif -%}
"""


def vicuna_chat(kind: str, special_tokens: dict[str, int]) -> ChatFormat:
    """The format with what is shown on lines of its own before the question.

    Args:
        kind: `video` or `image`, as templates know it and as its token is called.
        special_tokens: Those that the model adds to the vocabulary.
    """
    template = _TEMPLATE.replace("KIND", kind)
    return ChatFormat(template, {"</s>": 2, **special_tokens}, video_token=f"<{kind}>", end="</s>")
