"""The command's exit code is the promise: 0 only where nothing was lost that had to be kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from lab import LabUnavailable
from lab.tenants import Kind, Tally
from lab.tenants.kinds import ROUTER_KINDS
from traffic import __main__ as command
from traffic import measuring
from traffic.measuring import Measurement
from traffic.scenarios import Scenario
from traffic.ways import Account, Way


def tally(kind: Kind, lost: int = 0) -> Tally:
    return Tally(
        kind=kind, sent=1000, lost=lost, failed=0, slow=0, longest_gap_ms=12.0, slowest_ms=3.0, errors={"X": lost}
    )


class Lab:
    """A lab that is never up."""

    def up(self, _: list[object], *, release: str) -> None: ...


class Measured:
    """What the measurements find: losses by way, scenario and kind, and in the baseline."""

    def __init__(self) -> None:
        self.lost: dict[tuple[str, str, Kind], int] = {}
        self.baseline_lost = 0
        self.losses: dict[str, str] = {}
        self.actions: dict[str, tuple[str, ...]] = {}

    async def measure(self, _: object, scenario: Scenario, way: Way, number: int, **__: object) -> Measurement:
        acts = self.actions.get(scenario.name, scenario.acts)
        return Measurement(
            way=way.name,
            account=Account(ended="Committed", as_wanted=True, losses=self.losses, actions=acts),
            works=True,
            tallies=tuple(tally(kind, self.lost.get((way.name, scenario.name, kind), 0)) for kind in ROUTER_KINDS),
            patch_seconds=1.0,
            late_ms=0.0,
        )

    def baseline(self, *_: object, **__: object) -> tuple[Tally, ...]:
        return (tally(Kind.NAT_UDP, self.baseline_lost),)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Iterator[Measured]:
    made = Measured()
    monkeypatch.setattr(command, "borrowed", lambda: contextlib.nullcontext(Lab()))
    monkeypatch.setattr(measuring, "measure", made.measure)
    monkeypatch.setattr(measuring, "baseline", made.baseline)
    yield made


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(command.main, arguments)
    return result.exit_code, result.output


def test_a_run_that_kept_everything_ends_with_0_and_prints_the_baseline(found: Measured) -> None:
    found.lost["CloudStack's", "same-files", Kind.HTTP_NEW] = 700
    code, output = run()
    assert code == 0, output
    assert "baseline, nothing done: 0 lost of 1000" in output
    last = output.strip().splitlines()[-1].split()
    assert (last[:3], last[4], last[9]) == (["all", "all", "kinds"], "0", "700")


@pytest.mark.parametrize("name", ["same-files", "scripts-only", "apache-config", "haproxy-config", "pair"])
def test_one_request_lost_where_all_had_to_be_kept_ends_with_1(found: Measured, name: str) -> None:
    found.losses = {"apache2": "all of it"}
    found.lost["ours", name, Kind.METADATA] = 1
    code, output = run(name)
    assert code == 1
    assert f"BROKEN {name}: metadata lost 1" in output


@pytest.mark.parametrize(
    ("name", "kind"),
    [("dnsmasq-unit", Kind.DHCP_RENEW), ("vpc-unit", Kind.DNS_TCP), ("apache-unit", Kind.METADATA)],
)
def test_one_request_lost_in_a_held_restart_ends_with_1(found: Measured, name: str, kind: Kind) -> None:
    unit = kind.unit or ""
    found.losses = {unit: "none lost; requests wait up to half a second"}
    found.lost["ours", name, kind] = 1
    assert run(name)[0] == 1


def test_a_restart_that_was_not_held_ends_with_1_though_nothing_was_lost(found: Measured) -> None:
    found.actions["dnsmasq-unit"] = ("dnsmasq restart",)
    code, output = run("dnsmasq-unit", "--only-ours")
    assert code == 1
    assert "should have done dnsmasq heldrestart" in output


def test_what_the_plan_named_ends_with_0(found: Measured) -> None:
    found.losses = {"haproxy": "running load-balanced connections are cut"}
    found.lost["ours", "haproxy-unit", Kind.HTTP_LONG] = 8
    assert run("haproxy-unit")[0] == 0


def test_a_machine_that_loses_while_nothing_is_done_cannot_judge_and_ends_with_1(found: Measured) -> None:
    found.baseline_lost = 3
    code, output = run("same-files")
    assert code == 1
    assert "too busy to judge" in output


def test_a_machine_without_a_lab_ends_with_3(found: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(*_: object, **__: object) -> None:
        raise LabUnavailable("systemd is missing")

    monkeypatch.setattr(Lab, "up", lacks)
    assert run("same-files")[0] == command.CANNOT_RUN
