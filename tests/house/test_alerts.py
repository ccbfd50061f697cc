"""The alerts name metrics that exist, and each has its section in the runbook, and no other has."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from manylora.ledger.states import JobState
from manylora.metrics import ApiMetrics, SchedulerMetrics, WorkerMetrics
from tests.house.sources import ROOT

FILE: dict[str, Any] = yaml.safe_load((ROOT / "deploy/alerts.yml").read_text(encoding="utf-8"))
RULES: list[dict[str, Any]] = [rule for group in FILE["groups"] for rule in group["rules"]]
RUNBOOK = (ROOT / "docs/runbook.md").read_text(encoding="utf-8")
#: what Prometheus itself puts on a series, or makes of a histogram
GIVEN = {"instance", "job", "le"}

every = pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))


def known() -> dict[str, set[str]]:
    """Every series there is, with its labels."""
    found: dict[str, set[str]] = {}
    for part in (ApiMetrics(), SchedulerMetrics(), WorkerMetrics()):
        for name, kind, labels, _ in part.described():
            names = (
                [f"{name}_{end}" for end in ("bucket", "sum", "count")]
                if kind == "histogram"
                else [name]
            )
            found |= {key: set(labels) for key in names}
    return found


def test_the_file_is_what_prometheus_takes() -> None:
    assert set(FILE) == {"groups"}
    assert all(set(group) == {"name", "rules"} for group in FILE["groups"])
    names = [group["name"] for group in FILE["groups"]]
    assert len(set(names)) == len(names)
    alerts = [rule["alert"] for rule in RULES]
    assert len(set(alerts)) == len(alerts) > 10


@every
def test_a_rule_is_whole(rule: dict[str, Any]) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"Manylora[A-Z][A-Za-z]+", rule["alert"])
    assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert set(rule["annotations"]) == {"summary", "runbook"}
    assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"
    expression = rule["expr"]
    for opening, closing in ("()", "{}", "[]"):
        assert expression.count(opening) == expression.count(closing)
    assert re.search(r"[<>=]=? *\d|absent\(", expression), "compares with a number"


@every
def test_it_names_metrics_and_labels_that_exist(rule: dict[str, Any]) -> None:
    series, expression = known(), rule["expr"]
    named = re.findall(r"\bmanylora_\w+", expression)
    assert named or rule["alert"] == "ManyloraPartDown"
    assert set(named) <= set(series)
    labels = set().union(*(series[name] for name in named)) | GIVEN
    for name, selector in re.findall(r"\b(manylora_\w+)\{([^}]*)\}", expression):
        for label in re.findall(r"(\w+) *(?:=~|!~|!=|=)", selector):
            assert label in series[name], f"{name}{{{label}}}"
    for grouped in re.findall(r"\b(?:by|on|without|ignoring) *\(([^)]*)\)", expression):
        assert {part.strip() for part in grouped.split(",")} <= labels
    for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
        assert label in labels


@every
def test_a_value_of_a_label_is_one_there_is(rule: dict[str, Any]) -> None:
    """A misspelt outcome or state would never fire."""
    meanings = {
        name: meaning
        for part in (ApiMetrics(), SchedulerMetrics(), WorkerMetrics())
        for name, _, _, meaning in part.described()
    }
    for name, selector in re.findall(r"\b(manylora_\w+)\{([^}]*)\}", rule["expr"]):
        for label, value in re.findall(r'(outcome|state)[!=~]+"([^"]+)"', selector):
            for one in value.split("|"):
                states = {state.value for state in JobState} if label == "state" else set()
                assert one in states or re.search(rf"\b{one}\b", meanings[name]), one


def test_each_alert_has_its_section_and_each_section_its_alert() -> None:
    sections = re.findall(r"^## (\S+)$", RUNBOOK, re.MULTILINE)
    assert sections == [rule["alert"] for rule in RULES]


def test_each_section_says_what_it_means_how_to_see_it_and_what_to_do() -> None:
    for section in RUNBOOK.split("\n## ")[1:]:
        assert list(re.findall(r"^\*\*(\w+)\.\*\*", section, re.MULTILINE)) == [
            "Means",
            "See",
            "Do",
        ], section.splitlines()[0]


def test_the_runbook_names_metrics_and_log_lines_that_exist() -> None:
    ends = ("_bucket", "_sum", "_count", "")
    names = {name.removesuffix(end) for name in known() for end in ends}
    assert set(re.findall(r"`(manylora_\w+)`", RUNBOOK)) <= names
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in ("manylora", "scheduler", "worker")
        for path in (ROOT / folder).rglob("*.py")
    )
    for line in re.findall(r"`([a-z]+\.[a-z_]+)`", RUNBOOK):
        first, _, second = line.partition(".")
        ways = (f'"{line}"', f'f"{{what}}.{second}"', f'f"{first}.{{')
        assert any(way in code for way in ways), line
