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
                f"$.{key}",
                "unrecognized_key",
                "is not a key of this format",
                f"remove it; keys are {', '.join(sorted(_KEYS[kind]))}",
            )
    if kind == "messages":
        yield from _check_messages(line["messages"])
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
            trained += message.get("weight", 1) != 0
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
            yield f"{path}.{key}", "unrecognized_key", "is not a key of a message", "remove it"
    role = message.get("role")
    if "role" not in message:
        yield f"{path}.role", "missing_key", "is missing", 'add "role"'
    elif role not in ROLES:
        yield (
            f"{path}.role",
            "unrecognized_role",
            f'"{str(role)[:40]}" is not a role ({", ".join(ROLES)})',
            "use one of the roles",
        )
    content = message.get("content")
    if content is None:
        if not message.get("tool_calls") and not message.get("function_call"):
            yield f"{path}.content", "missing_content", "is missing", "add the text"
    elif isinstance(content, list):
        for i, part in enumerate(content):
            if not (isinstance(part, dict) and isinstance(part.get("text"), str)):
                yield f"{path}.content[{i}]", "data_type", "is not a text part", "use text parts"
    elif not isinstance(content, str):
        yield f"{path}.content", "data_type", "is not a string", "make it a string"
    elif role == "assistant" and not content.strip() and not message.get("tool_calls"):
        yield f"{path}.content", "empty_text", "is empty: nothing to learn from", "write it"
    weight = message.get("weight")
    if weight is not None and (role != "assistant" or weight not in (0, 1) or weight is True):
        yield (
            f"{path}.weight",
            "bad_weight",
            "weight is 0 or 1, and on assistant messages only",
            "remove it or make it 0 or 1",
        )


def text_of(content: Any) -> str:
    """A message's content as one text; parts are joined."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content or ""
