"""The page of reasons and the code say the same words."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path

import pytest

from sysvm.api.reasons import ConditionType, EventReason, Reason

PAGE = Path(__file__).resolve().parents[3] / "docs/reference/reasons.md"
ROW = re.compile(r"^\| `(?P<word>[A-Za-z]+)` \| (?P<meaning>.+) \|$", re.MULTILINE)


def rows(heading: str) -> list[tuple[str, str]]:
    """Rows of all tables below a heading of the second level."""
    for section in PAGE.read_text().split("\n## ")[1:]:
        if section.startswith(f"{heading}\n"):
            return [(match["word"], match["meaning"]) for match in ROW.finditer(section)]
    raise AssertionError(f"{PAGE} has no heading {heading}")


@pytest.mark.parametrize(
    ("heading", "words"), [("Condition types", ConditionType), ("Reasons", Reason), ("Events", EventReason)]
)
def test_the_page_explains_every_word_of_the_code_once(heading: str, words: type[StrEnum]) -> None:
    documented = [word for word, _ in rows(heading)]
    assert sorted(documented) == sorted(word.value for word in words)


@pytest.mark.parametrize("heading", ["Condition types", "Reasons", "Events"])
def test_an_explanation_is_one_sentence(heading: str) -> None:
    for word, meaning in rows(heading):
        assert re.fullmatch(r"[A-Z`].{10,}\.", meaning), word
        assert ". " not in meaning, word


def test_a_word_is_one_that_the_schema_accepts() -> None:
    for word in (*Reason, *EventReason, *ConditionType):
        assert re.fullmatch("[A-Za-z][A-Za-z0-9]{1,63}", word.value)
