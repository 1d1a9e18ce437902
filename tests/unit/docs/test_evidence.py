"""The page that names a test for every promise names only tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_every_test_that_the_evidence_names_exists() -> None:
    named = NAMED.findall((ROOT / "docs/evidence.md").read_text())
    assert len(named) > 60
    missing = [f"{path}::{name}" for path, name in named if name not in _functions(ROOT / path)]
    assert not missing


def test_every_row_names_a_test_or_is_said_not_to_be_built() -> None:
    text, _, _ = (ROOT / "docs/evidence.md").read_text().partition("## Not built")
    rows = [
        line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| promise", "| Cloud"))
    ]
    assert [row for row in rows if not NAMED.search(row)] == []


def test_each_of_cloudstacks_mistakes_has_its_row() -> None:
    made = _functions(ROOT / "tests/system/test_cloudstack_patch.py")
    named = {name for _, name in NAMED.findall((ROOT / "docs/evidence.md").read_text())}
    assert {name for name in made if re.match(r"test_b\d", name)} <= named


def _functions(path: Path) -> set[str]:
    if not path.exists():
        return set()
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
