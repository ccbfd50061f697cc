"""From lines to tokens and the mask of those that count, with `tokenizers` alone.

Every example begins with what the tokenizer itself adds (Gemma: <bos>) and ends with end-of-text,
which is learnt. mask[i] is True where token i is a label; the first token never is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import tokenizers

from manylora.datasets import formats
from manylora.datasets.templates import PLAIN, render
from manylora.errors import DatasetError, UsageError

Span = tuple[int, int]
_BOM = b"\xef\xbb\xbf"
_MARK = "\ue000manylora\ue000"  # private-use characters: in no conversation


@dataclass(frozen=True)
class Tokenised:
    """One example: token ids, which of them are labels, and whether its end was cut off."""

    line: int
    input_ids: list[int]
    mask: list[bool]
    truncated: bool


@dataclass
class Totals:
    """Sums over a file, complete once `encode_file` is exhausted. Lengths in tokens."""

    examples: int = 0
    tokens: int = 0
    label_tokens: int = 0
    truncated: list[int] = field(default_factory=list)  # line numbers

    def add(self, one: Tokenised) -> None:
        """Count one example."""
        self.examples += 1
        self.tokens += len(one.input_ids)
        self.label_tokens += sum(one.mask)
        if one.truncated:
            self.truncated.append(one.line)


class Tokenizer:
    """A base's tokenizer, its end-of-text token and its chat template. Thread-safe."""

    def __init__(self, path: Path | str, *, eos: str | int, chat_template: str | None) -> None:
        self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        found = self._tokenizer.token_to_id(eos) if isinstance(eos, str) else eos
        if found is None:
            raise UsageError(f"the tokenizer has no end-of-text token {eos!r}")
        self.eos = int(found)
        self._template = chat_template or PLAIN
        self._eos_text = self._tokenizer.id_to_token(self.eos) or ""
        self._prefix = self._front()

    def encode(self, example: dict[str, Any], line: int, max_length: int) -> Tokenised:
        """Tokens of one validated line, at most `max_length` of them.

        Raises: DatasetError when nothing to learn from is left after truncation, or the chat
        template refuses the conversation.
        """
        try:
            text, spans = self._text(example)
        except DatasetError as error:
            raise DatasetError(f"line {line}: {error.message}") from error
        coded = self._tokenizer.encode(text, add_special_tokens=False)
        ids, offsets = list(coded.ids), list(coded.offsets)
        mask = [any(start < b and end > a for a, b in spans) for start, end in offsets]
        if ids and ids[-1] == self.eos:
            mask[-1] = True
        else:
            ids.append(self.eos)
            mask.append(True)
        front = self._prefix if ids[: len(self._prefix)] != self._prefix else []
        ids, mask = front + ids, [False] * len(front) + mask
        mask[0] = False
        truncated = len(ids) > max_length
        ids, mask = ids[:max_length], mask[:max_length]
        if not any(mask):
            raise DatasetError(
                f"line {line}: nothing to learn from is left within {max_length} tokens",
                hint="raise max_length or shorten the prompt",
            )
        return Tokenised(line, ids, mask, truncated)

    def decode(self, ids: list[int]) -> str:
        """The text of tokens, without the special ones."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _text(self, example: dict[str, Any]) -> tuple[str, list[Span]]:
        """The example's whole text and the parts of it, in characters, that are learnt."""
        kind = formats.kind_of(example)
        if kind == "text":
            text: str = example["text"]
            return text, [(0, len(text))]
        if kind == "completion":
            prompt, completion = example["prompt"], example["completion"]
            return prompt + completion, [(len(prompt), len(prompt) + len(completion))]
        return self._conversation(example["messages"], example.get("tools"))

    def _conversation(
        self, messages: list[dict[str, Any]], tools: list[Any] | None
    ) -> tuple[str, list[Span]]:
        """Where the assistant's words begin is found by a mark put in their place."""
        plain = [{**m, "content": formats.text_of(m.get("content"))} for m in messages]
        whole = self._render(plain, tools)
        spans = []
        for i, message in enumerate(plain):
            if message["role"] != "assistant" or message.get("weight", 1) == 0:
                continue
            through = self._render(plain[: i + 1], tools)
            if not whole.startswith(through):
                raise DatasetError("the base's chat template rewrites earlier turns")
            marked = self._render([*plain[:i], {"role": "assistant", "content": _MARK}], tools)
            start = marked.find(_MARK)
            if start < 0 or marked[:start] != through[:start]:
                raise DatasetError("the base's chat template leaves out an assistant message")
            ending = marked[start + len(_MARK) :]
            turn = len(through) - (len(ending) - len(ending.rstrip("\n")))
            spans.append((start, turn if ending.strip() else len(through)))
        return whole, spans

    def _render(self, messages: list[dict[str, Any]], tools: list[Any] | None) -> str:
        return render(self._template, messages, tools=tools, eos_token=self._eos_text)

    def _front(self) -> list[int]:
        """What the tokenizer puts before every text of its own accord."""
        bare = self._tokenizer.encode("a", add_special_tokens=False).ids
        full = self._tokenizer.encode("a", add_special_tokens=True).ids
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return list(full[:start])
        return []


def encode_file(
    path: Path | str, tokenizer: Tokenizer, max_length: int, totals: Totals | None = None
) -> Iterator[Tokenised]:
    """Tokens of every line of a validated file, one at a time; `totals` counts along.

    Raises: DatasetError naming the line.
    """
    with open(path, "rb") as stream:
        for number, raw in enumerate(stream, start=1):
            bare = raw.removeprefix(_BOM).strip() if number == 1 else raw.strip()
            if not bare:
                continue
            try:
                line = msgspec.json.decode(bare, type=dict[str, Any])
            except msgspec.DecodeError as error:
                raise DatasetError(f"line {number}: is not JSON: {error}") from error
            one = tokenizer.encode(line, number, max_length)
            if totals is not None:
                totals.add(one)
            yield one
