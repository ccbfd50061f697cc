"""What an error carries, and that the command line always says what to do."""

from __future__ import annotations

import json

import pytest

from manylora.cli.main import run
from manylora.errors import ManyloraError, NotFoundError, UsageError


def test_an_error_keeps_its_own_hint_and_its_own_code() -> None:
    error = UsageError("no", hint="do this", code="finer")
    assert (error.hint, error.error_code, error.code) == ("do this", "finer", "invalid_request")
    assert (error.exit_code, error.http_status) == (2, 400)


@pytest.mark.parametrize("as_json", [True, False])
def test_an_error_without_a_hint_is_told_with_that_of_its_class(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    error: ManyloraError = NotFoundError("no such thing")
    assert error.hint is None

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr("manylora.cli.context.connect", fails)
    assert run(["jobs", *(["--json"] if as_json else [])]) == 1
    told = capsys.readouterr()
    if as_json:
        assert json.loads(told.out)["error"]["hint"] == NotFoundError.default_hint
    else:
        assert NotFoundError.default_hint in told.err
