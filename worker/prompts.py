"""The prompts a quality report answers: the first lines of a dataset, up to where the answer
begins. Imports no torch."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from manylora.datasets.tokenize import Tokenised, Tokenizer, encode_file

#: prompts of a report, and the tokens at the end of a long one that are kept
COUNT, LONGEST = 3, 256


def prompts(tokenizer: Tokenizer, source: Path, count: int = COUNT) -> list[dict[str, Any]]:
    """`count` lines as {line, prompt, expected, ids}: all tokens before the last ones that are
    learnt (the last user turn of a conversation with what came before it, a completion's prompt),
    and the text that follows in the file. A line of plain text is cut in its middle.

    Raises: DatasetError.
    """
    found = []
    for one in islice(encode_file(source, tokenizer, 1 << 20), count):
        start = _answer(one)
        ids = one.input_ids[:start][-LONGEST:]
        found.append(
            {
                "line": one.line,
                "prompt": tokenizer.decode(ids),
                "expected": tokenizer.decode(one.input_ids[start:]).strip(),
                "ids": ids,
            }
        )
    return found


def _answer(one: Tokenised) -> int:
    """Where the last learnt stretch begins; in the middle of a line that is learnt as a whole."""
    stop = len(one.mask)
    while stop > 1 and not one.mask[stop - 1]:
        stop -= 1
    start = stop
    while start > 1 and one.mask[start - 1]:
        start -= 1
    whole = not any(not learnt for learnt in one.mask[1:start])
    return max(1, len(one.input_ids) // 2) if whole and start == 1 else start
