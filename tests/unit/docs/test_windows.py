"""Every window and every rule that the documentation shows can be computed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.domain.windows import rule

from sysvm.api.window import MaintenanceWindow
from sysvm.domain.recurrence import understood
from sysvm.domain.spans import problem

DOCS = Path(__file__).resolve().parents[3] / "docs"
PAGE = (DOCS / "maintenance-windows.md").read_text()
RULES = re.findall(r"`(FREQ=[^`]+)`", PAGE)


def windows() -> list[dict[str, Any]]:
    texts = [path.read_text() for path in sorted((DOCS / "examples").glob("*.yaml"))]
    texts += re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    documents = [document for text in texts for document in yaml.safe_load_all(text)]
    return [document for document in documents if document["kind"] == "MaintenanceWindow"]


@pytest.mark.parametrize("document", windows(), ids=lambda document: document["metadata"]["name"])
def test_a_window_of_the_documentation_has_no_problem(document: dict[str, Any]) -> None:
    assert problem(MaintenanceWindow.model_validate(document)) is None


@pytest.mark.parametrize("text", RULES)
def test_a_rule_of_the_page_falls_on_days(text: str) -> None:
    assert understood(rule(text, start_date="2026-01-10"))


def test_the_page_shows_some() -> None:
    assert len(RULES) >= 7
    assert len(windows()) >= 7
