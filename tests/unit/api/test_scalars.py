"""How durations, times, amounts and names are read and written."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sysvm.api.base import DURATION_PATTERN, cel_text, compare_durations, format_duration, format_time, parse_duration
from sysvm.api.endpoint import StaticSystemVM
from sysvm.api.names import operation_id, plan_name, rollout_name, system_vm_name
from sysvm.api.strategy import Strategy
from sysvm.api.systemvm import Hold

DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
VM_NAME = next(m.pattern for m in StaticSystemVM.model_fields["name"].metadata if hasattr(m, "pattern"))

whole_seconds = st.integers(min_value=0, max_value=99_999 * 3600).map(lambda seconds: timedelta(seconds=seconds))
object_names = st.from_regex(DNS_SUBDOMAIN, fullmatch=True).filter(lambda name: len(name) <= 40)
vm_names = st.from_regex(re.compile(VM_NAME), fullmatch=True).filter(lambda name: len(name) <= 63)


@given(whole_seconds)
def test_a_duration_survives_being_written_and_read(value: timedelta) -> None:
    text = format_duration(value)
    assert parse_duration(text) == value
    assert re.fullmatch(DURATION_PATTERN, text), "the API server accepts what the operator writes"
    assert 2 <= len(text) <= 18


@given(st.from_regex(re.compile(DURATION_PATTERN), fullmatch=True))
def test_a_duration_that_the_api_server_accepts_can_be_read(text: str) -> None:
    if len(text) >= 2:
        assert parse_duration(format_duration(parse_duration(text))) == parse_duration(text)


@pytest.mark.parametrize("text", ["", "10", "1d", "-5s", "1.5h", "5s1m", " 5s", "5s\n", "١s", "1000000h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration such as"):
        parse_duration(text)


@pytest.mark.parametrize("amount", [1, 250, "1%", "5%", "10%", "100%"])
def test_an_amount_is_a_count_or_a_percentage(amount: int | str) -> None:
    assert Strategy.model_validate({"maxUnavailable": amount}).to_dict()["maxUnavailable"] == amount


@pytest.mark.parametrize("amount", [0, -1, "0%", "101%", "5", "05%", "%", "5 %", "1%\n", "", "1.5%"])
def test_an_amount_of_nothing_or_more_than_all_is_refused(amount: int | str) -> None:
    with pytest.raises(ValidationError):
        Strategy.model_validate({"maxUnavailable": amount})


@given(st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2200, 1, 1)))  # noqa: DTZ001
def test_a_time_survives_being_written_and_read(moment: datetime) -> None:
    aware = moment.replace(microsecond=0, tzinfo=UTC)
    hold = Hold.model_validate({"reason": "x", "until": format_time(aware)})
    assert hold.until == aware
    assert hold.to_dict()["until"] == format_time(aware)


def test_a_time_is_written_in_utc() -> None:
    amsterdam = timezone(timedelta(hours=2))
    assert format_time(datetime(2026, 7, 1, 12, tzinfo=amsterdam)) == "2026-07-01T10:00:00Z"


@given(object_names, vm_names)
def test_the_name_of_a_system_vm_is_one_that_kubernetes_accepts(endpoint: str, vm: str) -> None:
    name = system_vm_name(endpoint, vm)
    assert DNS_SUBDOMAIN.fullmatch(name)
    assert len(name) <= 253


@given(object_names, st.text("0123456789abcdef", min_size=64, max_size=64), st.integers(1, 10**9))
def test_the_names_of_rollout_and_plan_are_ones_that_kubernetes_accepts(policy: str, digest: str, number: int) -> None:
    name = rollout_name(policy, digest, number)
    assert name.startswith(f"{policy}-{digest[:8]}-")
    assert DNS_SUBDOMAIN.fullmatch(plan_name(name))
    assert len(name) <= 63, "it may be the value of a label"


def test_admitting_twice_is_admitting_once() -> None:
    assert operation_id("r", "vm", 1) == operation_id("r", "vm", 1)
    assert len({operation_id("r", "vm", 1), operation_id("r", "vm", 2), operation_id("rv", "m", 1)}) == 3
    assert re.fullmatch("op-[a-f0-9]{20}", operation_id("r", "vm", 1))


@pytest.mark.parametrize(("text", "literal"), [("a'b", r"'a\'b'"), (r"\d", r"'\\d'"), ("10s", "'10s'")])
def test_a_text_is_quoted_for_cel(text: str, literal: str) -> None:
    assert cel_text(text) == literal


def test_comparing_durations_leaves_what_is_none_to_its_own_rule() -> None:
    guard = f"!self.vm.matches('{DURATION_PATTERN}') || "
    assert compare_durations("self.vm", ">=", "1m") == f"{guard}duration(self.vm) >= duration('1m')"


@pytest.mark.parametrize("text", ["99999h60m", "99999h99999m99999s", "1h30m", "0s", "90s"])
def test_every_duration_that_can_be_read_is_written_so_that_it_can_be_read_again(text: str) -> None:
    assert parse_duration(format_duration(parse_duration(text))) == parse_duration(text)
