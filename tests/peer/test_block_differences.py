"""The page of known differences names those that the scripts have, and no others."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_lists_what_the_scripts_know_to_differ() -> None:
    known = set()
    for script in Path(__file__).parent.glob("test_block_differential*.py"):
        known |= set(re.findall(r'differs="([^"]+)"', script.read_text()))
    page = (ROOT / "docs" / "block-differences.md").read_text()
    table = page.split("<!-- table: begin -->")[1].split("<!-- table: end -->")[0]
    assert set(re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)) == known
