"""Chat templates: Jinja in a sandbox, and the few that a base without its own may name."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, Final

from jinja2 import Template, TemplateError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from manylora.errors import DatasetError, UsageError

_CALLS = "{{ m.tool_calls | tojson if m.tool_calls else '' }}"
PLAIN: Final = "{% for m in messages %}{{ m.role }}: {{ m.content }}" + _CALLS + "\n{% endfor %}"
BUILT_IN: Final = {
    "plain": PLAIN,
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content }}" + _CALLS + "<|im_end|>\n{% endfor %}"
    ),
    "gemma": (
        "{% set ns = namespace(system='') %}"
        "{% for m in messages %}"
        "{% if m.role in ('system', 'developer') %}"
        "{% set ns.system = ns.system ~ m.content ~ '\n\n' %}"
        "{% else %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{% if m.role == 'user' %}{{ ns.system }}{% set ns.system = '' %}{% endif %}"
        "{{ m.content }}" + _CALLS + "<end_of_turn>\n{% endif %}{% endfor %}"
    ),
}

#: what a template may raise on a conversation it was not written for
_BROKEN = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)


def template_text(name: str) -> str:
    """The template of that name, or `name` itself when it is a template.

    Raises: UsageError for an unknown name, or a template that is not Jinja.
    """
    if "{" in name:
        try:
            _compiled(name)
        except TemplateSyntaxError as error:
            raise UsageError(f"chat template, line {error.lineno}: {error.message}") from error
        return name
    if name not in BUILT_IN:
        raise UsageError(
            f"no chat template is called {name!r}", hint=f"built in: {', '.join(BUILT_IN)}"
        )
    return BUILT_IN[name]


def render(
    template: str,
    messages: list[dict[str, Any]],
    *,
    tools: list[Any] | None = None,
    bos_token: str = "",
    eos_token: str = "",
) -> str:
    """A conversation as one text.

    Raises: DatasetError when the template refuses the conversation or is broken.
    """
    try:
        return _compiled(template).render(
            messages=messages,
            tools=tools,
            bos_token=bos_token,
            eos_token=eos_token,
            add_generation_prompt=False,
        )
    except _BROKEN as error:
        raise DatasetError(f"the base's chat template refuses it: {error}") from error


@lru_cache(maxsize=16)
def _compiled(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refuse
    environment.filters["tojson"] = _tojson
    return environment.from_string(template)


def _tojson(value: Any, indent: int | None = None) -> str:
    """JSON as models were trained on it: Jinja's own filter escapes it for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
    raise TemplateError(message)
