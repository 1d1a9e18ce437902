"""Versions, ranges and the compatibility table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysvm.api.reasons import Reason
from sysvm.api.template import DEFAULT_COMPATIBILITY, CompatibilityRow
from sysvm.domain.versions import compatibility, in_range, is_older, parse_range, parse_version, release_version


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("Cloudstack Release 4.20.1 Tue Apr 15 19:56:27 UTC 2025", "4.20.1"),
        ("Cloudstack Release 4.19.0-SNAPSHOT Mon 1", "4.19.0"),
        ("Cloudstack Release 4.20.2.0 x\n", "4.20.2.0"),
        ("cloudstack release 4.18.0 x", "4.18.0"),
        ("Cloudstack Release", None),
        ("Cloudstack Release unknown Tue", None),
        ("Cloudstack Release 4.20.1x Tue", None),
        ("4.20.1", None),
        ("", None),
    ],
)
def test_the_release_line_gives_its_third_word(line: str, version: str | None) -> None:
    assert release_version(line) == version


@pytest.mark.parametrize(
    ("have", "want", "supported", "warned"),
    [
        ("4.13.1", "4.19.3", False, False),
        ("4.14.0", "4.19.3", True, True),
        ("4.15.0", "4.19.3", True, False),
        ("4.15.2", "4.20.0", False, False),
        ("4.16.0", "4.20.2", True, True),
        ("4.19.9", "4.20.2", True, True),
        ("4.20.0", "4.20.2", True, False),
        ("4.20.0-SNAPSHOT", "4.21.0", True, False),
    ],
)
def test_the_default_table_is_the_documented_one(have: str, want: str, *, supported: bool, warned: bool) -> None:
    verdict = compatibility(DEFAULT_COMPATIBILITY, have, want)
    assert verdict.supported is supported
    assert bool(verdict.warning) is warned
    assert verdict.reason is (None if supported else Reason.NOT_COMPATIBLE)
    assert supported or verdict.message


@pytest.mark.parametrize("version", [None, "", "UNKNOWN", "0"])
def test_a_version_that_cannot_be_read_is_no_licence(version: str | None) -> None:
    verdict = compatibility(DEFAULT_COMPATIBILITY, version, "4.20.2")
    assert (verdict.supported, verdict.reason) == (False, Reason.VERSION_UNKNOWN)


def test_no_matching_row_refuses() -> None:
    verdict = compatibility(DEFAULT_COMPATIBILITY[:1], "4.20.1", "4.20.2")
    assert (verdict.supported, verdict.reason) == (False, Reason.NOT_COMPATIBLE)


def test_a_range_that_cannot_be_read_refuses() -> None:
    row = CompatibilityRow.model_construct(from_="rubbish", to=">=4", supported=True)
    verdict = compatibility([row], "4.20.1", "4.20.2")
    assert (verdict.supported, verdict.reason) == (False, Reason.NOT_COMPATIBLE)
    assert "rubbish" in verdict.message


def test_an_empty_range_is_an_error() -> None:
    with pytest.raises(ValueError, match="empty"):
        parse_range("")


numbers = st.tuples(st.integers(0, 30), st.integers(0, 40), st.integers(0, 20))


@given(a=numbers, b=numbers)
def test_versions_compare_as_numbers_not_as_text(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    one, two = (".".join(map(str, version)) for version in (a, b))
    assert is_older(one, two) is (a < b)
    parsed = parse_version(f"{one}-SNAPSHOT")
    assert parsed is not None
    assert in_range(parsed, f">={two}") is (a >= b)


@given(have=numbers, want=numbers)
def test_the_default_table_has_an_answer_for_every_pair(have: tuple[int, ...], want: tuple[int, ...]) -> None:
    one, two = (".".join(map(str, version)) for version in (have, want))
    assert compatibility(DEFAULT_COMPATIBILITY, one, two).message != "no row of the compatibility table covers the two"
