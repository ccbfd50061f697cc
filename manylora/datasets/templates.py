"""Chat templates: Jinja in a sandbox, and the few that a base without its own may name."""

from __future__ import annotations

from typing import Any, Final

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from manylora.errors import DatasetError, UsageError

PLAIN: Final = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
BUILT_IN: Final = {
    "plain": PLAIN,
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    ),
    "gemma": (
        "{% set ns = namespace(system='') %}"
        "{% for m in messages %}"
        "{% if m.role in ('system', 'developer') %}{% set ns.system = m.content ~ '\n\n' %}"
        "{% else %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{% if m.role == 'user' %}{{ ns.system }}{% set ns.system = '' %}{% endif %}"
        "{{ m.content }}<end_of_turn>\n{% endif %}{% endfor %}"
    ),
}


def template_text(name: str) -> str:
    """The template of that name, or `name` itself when it is a template.

    Raises: UsageError for an unknown name.
    """
    if "{" in name:
        return name
    if name not in BUILT_IN:
        raise UsageError(
            f"no chat template is called {name!r}", hint=f"built in: {', '.join(BUILT_IN)}"
        )
    return BUILT_IN[name]


def render(
    template: str, messages: list[dict[str, Any]], *, bos_token: str = "", eos_token: str = ""
) -> str:
    """A conversation as one text.

    Raises: DatasetError when the template refuses the conversation or is broken.
    """
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refuse
    try:
        return environment.from_string(template).render(
            messages=messages, bos_token=bos_token, eos_token=eos_token, add_generation_prompt=False
        )
    except TemplateError as error:
        raise DatasetError(f"the base's chat template refuses it: {error}") from error


def _refuse(message: str) -> None:
    raise TemplateError(message)
