"""Built-in templates, the sandbox, and templates that are broken."""

from __future__ import annotations

import pytest

from manylora.datasets.templates import BUILT_IN, render, template_text
from manylora.errors import DatasetError, UsageError

TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yes"},
]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain", "system: Be kind.\nuser: hi\nassistant: yes\n"),
        (
            "chatml",
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
            "<|im_start|>assistant\nyes<|im_end|>\n",
        ),
        (
            "gemma",
            "<start_of_turn>user\nBe kind.\n\nhi<end_of_turn>\n"
            "<start_of_turn>model\nyes<end_of_turn>\n",
        ),
    ],
)
def test_built_in(name: str, text: str) -> None:
    assert render(template_text(name), TALK) == text


def test_tool_calls_are_written_as_json() -> None:
    message = {"role": "assistant", "content": "", "tool_calls": [{"name": "<é>"}]}
    assert render(BUILT_IN["plain"], [message]) == 'assistant: [{"name": "<é>"}]\n'


def test_a_template_is_its_own_text() -> None:
    assert template_text("{{ messages }}") == "{{ messages }}"


@pytest.mark.parametrize(
    ("name", "told"), [("gema", "built in|gema"), ("{# a #}\n{% for %}", "line 2")]
)
def test_wrong_names_and_syntax(name: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        template_text(name)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{{ 1 / 0 }}",
        "{{ nothing.at.all }}",
        "{{ messages[0].role + 1 }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ range(999999999) | list }}",
        "{% for %}",
    ],
)
def test_broken_and_hostile_templates_are_refused(template: str) -> None:
    with pytest.raises(DatasetError, match="chat template refuses it"):
        render(template, TALK)
