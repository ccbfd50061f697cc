"""The three kinds of line, and what may be wrong inside one. Reading files is in validate.py.

{"text": …}                           loss on all tokens
{"prompt": …, "completion": …}        loss on the completion
{"messages": [{role, content, …}]}    loss on assistant turns whose weight is not 0
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

Found = tuple[str, str, str, str]  # path, code, message, fix

ROLES: Final = ("system", "developer", "user", "assistant", "tool", "function")
_KEYS: Final = {
    "text": {"text"},
    "completion": {"prompt", "completion"},
    "messages": {"messages", "tools", "parallel_tool_calls"},
}
_TOLERATED: Final = {"id", "metadata"}
_SHOWN = 40  # characters of a stranger's key or value that a problem repeats
_MESSAGE_KEYS: Final = {
    "role", "content", "name", "weight", "tool_calls", "tool_call_id", "function_call", "refusal",
}  # fmt: skip


def kind_of(line: dict[str, Any]) -> str | None:
    """Which kind a line means to be; None when it is none of them."""
    if "messages" in line:
        return "messages"
    if "prompt" in line or "completion" in line:
        return "completion"
    return "text" if "text" in line else None


def check(line: dict[str, Any], kind: str) -> Iterator[Found]:
    """Every problem of one line of that kind."""
    for key in line:
        if key not in _KEYS[kind] | _TOLERATED:
            yield (
                f"$.{key[:_SHOWN]}",
                "unrecognized_key",
                "is not a key of this format",
                f"remove it; keys are {', '.join(sorted(_KEYS[kind]))}",
            )
    if kind == "messages":
        yield from _check_messages(line.get("messages"))
        if not isinstance(line.get("tools", []), list | None):
            yield "$.tools", "data_type", "is not a list", "make it a list of tools"
        if not isinstance(line.get("parallel_tool_calls"), bool | None):
            yield "$.parallel_tool_calls", "data_type", "is not true or false", "use true or false"
        return
    for key in sorted(_KEYS[kind]):
        if key not in line:
            yield f"$.{key}", "missing_key", "is missing", f'add "{key}"'
        elif not isinstance(line[key], str):
            yield f"$.{key}", "data_type", "is not a string", "make it a string"
        elif key != "prompt" and not line[key].strip():
            yield f"$.{key}", "empty_text", "is empty: nothing to learn from", "remove the line"


def _check_messages(messages: Any) -> Iterator[Found]:
    if not isinstance(messages, list):
        yield "$.messages", "data_type", "is not a list", "make it a list of messages"
        return
    if not messages:
        yield "$.messages", "empty_messages", "is empty", "remove the line"
        return
    assistants = trained = 0
    for i, message in enumerate(messages):
        path = f"$.messages[{i}]"
        if not isinstance(message, dict):
            yield path, "data_type", "is not an object", 'write {"role": …, "content": …}'
            continue
        yield from _check_message(message, path)
        if message.get("role") == "assistant":
            assistants += 1
            weight = message.get("weight", 1)
            trained += weight != 0 or weight is False  # false is a bad_weight of its own
    if not assistants:
        yield (
            "$.messages",
            "no_assistant",
            "no assistant message: nothing to learn from",
            "add the answer to be learnt",
        )
    elif not trained:
        yield (
            "$.messages",
            "nothing_weighted",
            "every assistant message has weight 0: nothing to learn from",
            "give one of them weight 1",
        )


def _check_message(message: dict[str, Any], path: str) -> Iterator[Found]:
    for key in message:
        if key not in _MESSAGE_KEYS:
            at = f"{path}.{key[:_SHOWN]}"
            yield at, "unrecognized_key", "is not a key of a message", "remove it"
    role = message.get("role")
    if "role" not in message:
        yield f"{path}.role", "missing_key", "is missing", 'add "role"'
    elif role not in ROLES:
        yield (
            f"{path}.role",
            "unrecognized_role",
            f'"{str(role)[:_SHOWN]}" is not a role ({", ".join(ROLES)})',
            "use one of the roles",
        )
    yield from _check_content(message, role == "assistant", f"{path}.content")
    if not isinstance(message.get("name"), str | None):
        yield f"{path}.name", "data_type", "is not a string", "make it a string"
    if not isinstance(message.get("tool_calls"), list | None):
        yield f"{path}.tool_calls", "data_type", "is not a list", "make it a list of calls"
    weight = message.get("weight")
    if weight is not None and (
        role != "assistant" or isinstance(weight, bool) or weight not in (0, 1)
    ):
        yield (
            f"{path}.weight",
            "bad_weight",
            "weight is 0 or 1, and on assistant messages only",
            "remove it or make it 0 or 1",
        )


def _check_content(message: dict[str, Any], assistant: bool, path: str) -> Iterator[Found]:
    content = message.get("content")
    calls = assistant and bool(message.get("tool_calls") or message.get("function_call"))
    if content is None:
        if not calls:
            yield path, "missing_content", "is missing", "add the text"
    elif isinstance(content, list):
        wrong = [i for i, part in enumerate(content) if not _is_text_part(part)]
        for i in wrong:
            fix = 'write {"type": "text", "text": …}'
            yield f"{path}[{i}]", "data_type", "is not a text part", fix
        if assistant and not calls and not wrong and not text_of(content).strip():
            yield path, "empty_text", "is empty: nothing to learn from", "write the answer"
    elif not isinstance(content, str):
        yield path, "data_type", "is not a string", "make it a string or a list of text parts"
    elif assistant and not calls and not content.strip():
        yield path, "empty_text", "is empty: nothing to learn from", "write the answer"


def _is_text_part(part: Any) -> bool:
    return (
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
    )


def text_of(content: Any) -> str:
    """A message's content as one text; parts are joined."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content or ""
