"""Every code, no crash on any bytes, and one bad line among ten thousand."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.datasets.limits import Limits
from manylora.datasets.problems import ARRAY_CODES, CODES, Report
from manylora.datasets.validate import validate, validate_path
from manylora.errors import DatasetError
from manylora.settings import Settings

DOCS = Path(__file__).parents[3] / "docs" / "datasets.md"
EXAMPLES = Path(__file__).parents[3] / "examples"
SMALL = Limits(
    max_file_bytes=1800, max_line_bytes=400, max_json_depth=6, max_examples=5, min_examples=1
)
GOOD = b'{"text": "a"}\n'


def chat(*messages: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"messages": list(messages), **more}).encode()


def check(data: bytes, limits: Limits = SMALL) -> Report:
    return validate(io.BytesIO(data), limits)


USER = {"role": "user", "content": "hi"}
BOT = {"role": "assistant", "content": "yes"}
CASES: list[tuple[str, int, str, bytes]] = [
    ("bad_weight", 1, "$.messages[1].weight", chat(USER, BOT | {"weight": 2})),
    ("bad_weight", 1, "$.messages[1].weight", chat(USER, BOT | {"weight": False})),
    ("bad_weight", 1, "$.messages[0].weight", chat(USER | {"weight": 1}, BOT)),
    ("blank_line", 2, "$", GOOD + b"\n" + GOOD),
    ("data_type", 1, "$.text", b'{"text": 1}'),
    ("data_type", 1, "$.messages", b'{"messages": "x"}'),
    ("data_type", 1, "$.messages[0]", b'{"messages": [1, {"role":"assistant","content":"a"}]}'),
    ("data_type", 1, "$.messages[0].content", chat({"role": "user", "content": 5}, BOT)),
    ("data_type", 1, "$.messages[0].content[0]", chat({"role": "user", "content": ["x"]}, BOT)),
    ("data_type", 1, "$.messages[0].name", chat(USER | {"name": 3}, BOT)),
    ("data_type", 1, "$.messages[1].tool_calls", chat(USER, BOT | {"tool_calls": "f"})),
    ("data_type", 1, "$.tools", chat(USER, BOT, tools="x")),
    ("data_type", 1, "$.parallel_tool_calls", chat(USER, BOT, parallel_tool_calls=1)),
    ("empty_file", 0, "$", b""),
    ("empty_file", 0, "$", b"\xef\xbb\xbf\r\n\n"),
    ("empty_messages", 1, "$.messages", b'{"messages": []}'),
    ("empty_text", 1, "$.text", b'{"text": " "}'),
    ("empty_text", 1, "$.completion", b'{"prompt": "a", "completion": ""}'),
    ("empty_text", 1, "$.messages[1].content", chat(USER, BOT | {"content": ""})),
    ("empty_text", 1, "$.messages[1].content", chat(USER, BOT | {"content": []})),
    ("file_too_large", 0, "$", (b'{"text": "' + b"a" * 380 + b'"}\n') * 5),
    ("missing_content", 1, "$.messages[0].content", chat({"role": "user"}, BOT)),
    ("missing_content", 1, "$.messages[1].content", chat(USER, BOT | {"content": None})),
    ("missing_key", 1, "$.completion", b'{"prompt": "a"}'),
    ("missing_key", 1, "$", b'{"x": 1}'),
    ("missing_key", 1, "$.messages[0].role", chat({"content": "a"}, BOT)),
    ("mixed_kinds", 2, "$", GOOD + b'{"prompt": "a", "completion": "b"}'),
    ("no_assistant", 1, "$.messages", chat(USER)),
    ("not_json", 2, "$", GOOD + b'{"text": "a"'),
    ("not_json", 1, "$", b'{"text": "a", "metadata": NaN}'),
    ("not_object", 1, "$", b"[1]"),
    ("not_utf8", 2, "$", GOOD + b'{"text": "\xff"}'),
    ("nothing_weighted", 1, "$.messages", chat(USER, BOT | {"weight": 0})),
    ("number_too_long", 1, "$", b'{"text": "a", "id": ' + b"9" * 70 + b"}"),
    ("too_deep", 1, "$", b'{"text": "a", "metadata": ' + b"[" * 9 + b"]" * 9 + b"}"),
    ("too_deep", 1, "$", b"[" * 399),
    ("too_long", 2, "$", GOOD + b'{"text": "' + b"a" * 400 + b'"}\n' + GOOD),
    ("too_many_examples", 0, "$", GOOD * 6),
    ("unrecognized_key", 1, "$.temperature", b'{"text": "a", "temperature": 1}'),
    ("unrecognized_key", 1, "$.messages[0].text", chat(USER | {"text": "a"}, BOT)),
    ("unrecognized_role", 1, "$.messages[1].role", chat(USER, {**BOT, "role": "assistent"}, BOT)),
    ("unrecognized_role", 1, "$.messages[1].role", chat(USER, {**BOT, "role": []}, BOT)),
]


@pytest.mark.parametrize(("code", "line", "path", "data"), CASES)
def test_each_problem_is_told_once_with_its_place(
    code: str, line: int, path: str, data: bytes
) -> None:
    problems = check(data).problems
    assert [(p.code, p.line, p.path) for p in problems] == [(code, line, path)]
    assert problems[0].message
    assert problems[0].fix


def test_too_few_examples() -> None:
    found = check(GOOD, Limits(min_examples=10)).problems
    assert [p.code for p in found] == ["too_few_examples"]


@pytest.mark.parametrize("data", [b"\n" * 100_002 + b"x", b"x\n" * 100_002], ids=["blank", "bad"])
def test_reading_stops_at_a_hundred_thousand_problems(data: bytes) -> None:
    report = check(data, Limits())
    assert len(report.problems) == 100_001
    assert report.problems[-1].code == "too_many_problems"


def test_the_page_and_the_cases_cover_every_code() -> None:
    told = set(re.findall(r"^\| `(\w+)` \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE))
    assert {c for c in told if c.islower()} == CODES | ARRAY_CODES
    assert {case[0] for case in CASES} | {"too_few_examples", "too_many_problems"} == CODES


@pytest.mark.parametrize(
    "data",
    [
        GOOD,
        b"\xef\xbb\xbf" + GOOD + b"\r\n\n  \n",
        b'{"text": "a", "id": 7, "metadata": {"x": [1]}}',
        b'{"prompt": "", "completion": "b"}\r\n',
        b'{"text": "' + b"9" * 100 + b"[" * 50 + b'"}',
        chat(USER, BOT | {"weight": 1}, tools=[], parallel_tool_calls=True),
        chat(USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]}),
        chat({"role": "user", "content": [{"type": "text", "text": "a"}]}, BOT),
    ],
)
def test_good_lines(data: bytes) -> None:
    report = check(data)
    assert report.problems == []
    assert (report.lines, report.examples) == (1, 1)
    report.raise_if_bad("x.jsonl")


def test_a_line_of_exactly_the_limit() -> None:
    line = b'{"text": "' + b"a" * (400 - 12) + b'"}'
    assert len(line) == 400
    assert check(line).problems == []
    assert check(line + b"\n").problems == []
    assert [p.code for p in check(line + b" ").problems] == ["too_long"]


def test_one_bad_line_of_ten_thousand(tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": f"q{i}", "completion": f"a{i}"}) for i in range(10_000)]
    lines[876] = lines[876][:-3]
    path = tmp_path / "big.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    good = io.BytesIO()
    report = validate_path(path, Limits(), good)
    assert [(p.line, p.code) for p in report.problems] == [(877, "not_json")]
    assert (report.lines, report.examples, report.bad_lines) == (10_000, 9_999, 1)
    assert good.getvalue().decode().splitlines() == lines[:876] + lines[877:]
    with pytest.raises(DatasetError, match="line 877: ") as raised:
        report.raise_if_bad("big.jsonl")
    assert raised.value.details == report.as_json()


def test_the_first_twenty_are_named() -> None:
    with pytest.raises(DatasetError) as raised:
        check(b"x\n" * 30).raise_if_bad("x.jsonl")
    assert raised.value.message.count("line ") == 20
    assert "and 10 more" in raised.value.message


def test_the_settings_set_the_limits() -> None:
    assert Limits.from_settings(Settings()) == Limits()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/*.jsonl")), ids=str)
def test_the_examples_are_good(path: Path) -> None:
    report = validate_path(path, Limits())
    assert report.problems == []
    assert report.examples == (16 if path.stem == "heldout" else 72)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["messages", "role", "content", "weight", "text", "prompt", "tools", "x"]
            )
            | st.text(max_size=3),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)


@given(st.lists(JSON, max_size=4))
def test_no_json_raises(values: list[Any]) -> None:
    check("\n".join(json.dumps(v) for v in values).encode()).as_json()


@given(st.binary(max_size=300), st.integers(1, 50))
def test_no_bytes_raise_and_chunks_do_not_matter(data: bytes, size: int) -> None:
    whole = check(data)
    parts = [data[i : i + size] for i in range(0, len(data), size)]
    if size >= 3:  # a byte order mark is looked for in the first chunk
        assert validate(parts, SMALL) == whole


@given(st.lists(st.sampled_from([b'{"text":"', b"[", b"{", b'"', b"\\", b"}", b"\n", b"\xed"])))
def test_no_near_json_raises(parts: list[bytes]) -> None:
    check(b"".join(parts))
