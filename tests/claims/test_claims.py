"""The cheap claims hold, and the page names every one."""

import pytest

from claims import page
from claims.row import Place, measured


@pytest.mark.parametrize(
    "claim", [c for c in page.EVERY if c.cheap], ids=lambda claim: claim.name.replace(" ", "-")
)
def test_a_cheap_claim_holds(claim, tmp_path):
    row = measured(claim, Place(tmp_path))
    assert row.holds, row.measured
    assert row.measured


def test_the_page_names_every_row_and_all_hold():
    text = page.PAGE.read_text(encoding="utf-8")
    for claim in page.EVERY:
        assert f"## {claim.document}\n" in text
        assert f"| {claim.name} | {claim.says} |" in text
    assert "**no**" not in text
    assert text.count("| yes |") == len(page.EVERY)
