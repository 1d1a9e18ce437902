"""The killer of the kill tests must itself be right: one that never strikes proves nothing."""

from __future__ import annotations

import os
import signal

import pytest

from sysvm.engine.resources import ENDPOINT
from sysvm.kube.client import Verb, Write
from sysvm.kube.errors import Conflict, KubeError
from sysvm.kube.events import EVENT
from sysvm.operator import killer
from sysvm.operator.settings import SettingsError


class Silent:
    def before(self, write: Write) -> None: ...

    def after(self, write: Write, error: KubeError | None) -> None: ...


class Dead(BaseException):
    """Instead of the signal."""


@pytest.fixture(autouse=True)
def _raise_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    def strike(pid: int, number: int) -> None:
        assert (pid, number) == (os.getpid(), signal.SIGKILL)
        raise Dead

    monkeypatch.setattr(os, "kill", strike)


def a_write() -> Write:
    return Write(Verb.PATCH, ENDPOINT, "ns", "here", "status")


def an_event() -> Write:
    return Write(Verb.CREATE, EVENT, "ns", "told")


def watched(wish: str) -> killer.Killer:
    found = killer.observing(Silent(), {killer.VARIABLE: wish})
    assert isinstance(found, killer.Killer)
    return found


def test_without_the_wish_nobody_counts() -> None:
    silent = Silent()
    assert killer.observing(silent, {}) is silent


def test_it_strikes_before_the_second_write_and_not_earlier() -> None:
    watching, first = watched("2:before"), a_write()
    watching.before(first)
    watching.after(first, None)
    with pytest.raises(Dead):
        watching.before(a_write())


def test_it_strikes_after_the_answer_to_the_second_write_begun() -> None:
    watching, first, second = watched("2:after"), a_write(), a_write()
    watching.before(first)
    watching.before(second)
    watching.after(first, None)
    with pytest.raises(Dead):
        watching.after(second, None)


def test_events_are_no_writes_to_die_at() -> None:
    watching, told = watched("1:before"), an_event()
    watching.before(told)
    watching.after(told, None)
    with pytest.raises(Dead):
        watching.before(a_write())


def test_nobody_dies_after_a_write_that_was_refused() -> None:
    watching, refused, accepted = watched("1:after"), a_write(), a_write()
    watching.before(refused)
    watching.after(refused, Conflict("changed", request="patch"))
    watching.before(accepted)
    with pytest.raises(Dead):
        watching.after(accepted, None)


def test_another_dies_for_a_write_that_was_refused_when_others_had_begun() -> None:
    watching, refused, beside, later = watched("1:after"), a_write(), a_write(), a_write()
    watching.before(refused)
    watching.before(beside)
    watching.after(refused, Conflict("changed", request="patch"))
    watching.after(beside, None)
    watching.before(later)
    with pytest.raises(Dead):
        watching.after(later, None)


@pytest.mark.parametrize("wish", ["7", "7:later", "x:before", ":after"])
def test_a_wish_that_makes_no_sense_is_refused(wish: str) -> None:
    with pytest.raises(SettingsError):
        watched(wish)
