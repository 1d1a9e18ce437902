"""A real pair of routers: what proves its one PRIMARY, and what a patch of it may move.

keepalived, conntrackd, the notify chain and the guest network are real; both routers are looked at over ssh.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest

from lab import Lab, SystemVMType, VMSpec, preflight
from lab.content import payloads, releases
from lab.content.layout import CONNTRACKD_SETTINGS
from lab.spec import RedundancyRole
from reach import patch_order, target_of
from sysvm.api.reasons import Reason
from sysvm.domain.pairs import SAMPLES, Proof, Router, Trouble, one_primary
from sysvm.patching.errors import Refused
from sysvm.patching.live import LivePatcher
from sysvm.patching.payload import Payload, read_payload
from sysvm.patching.results import JournalPhase, OperationReport

pytestmark = [
    pytest.mark.systemvm,
    pytest.mark.skipif(preflight.missing() is not None, reason=preflight.missing() or ""),
    pytest.mark.timeout(600),
]

GROUP = "net-81"
TEMPLATE = "opt/cloud/templates/conntrackd.conf.templ"
KEEPALIVED_UNIT = "etc/systemd/system/keepalived.service.d/lab.conf"
PATIENCE = 90.0
KILL_THE_NEXT = """
conntrackd() { pgrep -xf "/usr/sbin/conntrackd -C /etc/conntrackd/conntrackd.conf"; }
old=$(conntrackd)
until new=$(conntrackd) && [ "$new" != "$old" ] && [ -e /run/lock/conntrackd.lock ]; do :; done
kill -9 "$new"; echo "$new" > /run/killed
"""
"""On the VM: the next conntrackd does not live long enough to remove its lock file."""

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("lab"))
    try:
        made.up([], release="old")
        yield made
    finally:
        made.down()


@pytest.fixture
def pair(running: Lab) -> Iterator[Lab]:
    """A lab with a fresh pair at the old release."""
    specs = [
        VMSpec(
            name=f"r-{number}-VM",
            type=SystemVMType.ROUTER,
            index=number,
            group=GROUP,
            redundant=True,
            priority=priority,
            tmpfs_mib=512,
        )
        for number, priority in ((81, 110), (82, 100))
    ]
    running.add(*specs, release="old")
    running.wait_elected(GROUP)
    found = asyncio.run(proven(running))
    assert isinstance(found, Proof), found
    yield running
    for spec in specs:
        running.remove(spec.name)


def roles(lab: Lab) -> tuple[str, str]:
    """(PRIMARY, BACKUP)."""
    names = sorted((vm.name for vm in lab.vms()), key=lambda name: lab.role(name) is not RedundancyRole.PRIMARY)
    return names[0], names[1]


def eventually(holds: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    end = time.monotonic() + seconds
    while not (found := holds()) and time.monotonic() < end:
        time.sleep(0.5)
    return found


async def proven(lab: Lab, seconds: float = PATIENCE) -> Proof | Trouble:
    """Like `proof`, asked for again until the pair has settled."""
    end = time.monotonic() + seconds
    while isinstance(found := await proof(lab), Trouble) and time.monotonic() < end:
        await asyncio.sleep(0.5)
    return found


async def proof(lab: Lab) -> Proof | Trouble:
    """What admission decides by: both looked at together, three times."""
    names = [vm.name for vm in lab.vms()]
    looks = await asyncio.gather(
        *(LivePatcher().observe(target_of(lab, name), None, samples=SAMPLES) for name in names)
    )
    routers = [Router(name, look.pair_samples) for name, look in zip(names, looks, strict=True)]
    return one_primary(routers, now=datetime.now(UTC))


def payload(release: releases.Release) -> Payload:
    return read_payload(payloads.build_scripts(release), None)


def new_keepalived_unit() -> Payload:
    return payload(releases.old().derive("keepalived", add={KEEPALIVED_UNIT: b"[Service]\nEnvironment=LAB=1\n"}))


async def patch(lab: Lab, name: str, wanted: Payload, *, may_fail_over: bool = False) -> OperationReport:
    order = patch_order(
        f"pair-{next(_numbers)}", step_timeout_seconds=180, vm_timeout_seconds=400, may_fail_over=may_fail_over
    )
    return await LivePatcher().patch(target_of(lab, name), wanted, order, lambda _: None)


def told(report: OperationReport) -> str:
    return "\n".join([repr(dataclasses.replace(report, steps=())), *map(repr, report.steps)])


def tenants_gateway(lab: Lab, name: str) -> str:
    shared = lab.vm(name).nics[0].virtual_address
    assert shared is not None
    return str(shared.ip)


def new_template() -> Payload:
    text = releases.old().edited(TEMPLATE, b"HashLimit 65536", b"HashLimit 131072")
    return payload(releases.old().derive("conntrackd", change={TEMPLATE: text}))


def as_on_a_router(lab: Lab, name: str) -> None:
    """Without the lab's own setting, which removes the lock file of a conntrackd that was killed."""
    lab.exec(name, f"rm {CONNTRACKD_SETTINGS} && systemctl daemon-reload")


def main_pid(lab: Lab, name: str, unit: str) -> str:
    return lab.exec(name, f"systemctl show -P MainPID {unit}").stdout.strip()


def public_is_up(lab: Lab, name: str) -> bool:
    return ",UP" in lab.exec(name, "ip -o link show dev eth2").stdout


def configure(lab: Lab, name: str) -> None:
    """A command of the management server: every one of them ends with CsRedundant."""
    lab.exec(
        name,
        "/opt/cloud/bin/update_config.py guest_network.json 2>/dev/null || /opt/cloud/bin/configure.py cmd_line.json",
    )


async def test_a_machine_that_takes_the_gateway_is_found_and_named(pair: Lab) -> None:
    """Each router for itself is in order: only the guest network knows."""
    primary, backup = roles(pair)
    gateway = tenants_gateway(pair, primary)
    pair.exec(backup, f"ip addr add {gateway}/32 dev eth0")
    found = await proof(pair)
    assert isinstance(found, Trouble)
    assert found.reason is Reason.DUPLICATE_PRIMARY
    assert primary in found.sentence
    pair.exec(backup, f"ip addr del {gateway}/32 dev eth0")
    found = await proof(pair)
    assert isinstance(found, Proof), found
    assert found.primary == primary


async def test_a_pair_whose_conntrackd_is_down_is_not_proven(pair: Lab) -> None:
    _, backup = roles(pair)
    pair.exec(backup, "systemctl stop conntrackd")
    found = await proof(pair)
    assert isinstance(found, Trouble)
    assert found.reason is Reason.PAIR_NOT_SYNCED
    assert backup in found.sentence


async def test_a_conntrackd_that_was_killed_and_cannot_start_is_told_with_what_is_in_its_way(pair: Lab) -> None:
    """As on a router, whose unit is Debian's own: what is left of it keeps every later one from starting."""
    _, backup = roles(pair)
    as_on_a_router(pair, backup)
    pair.exec(backup, "systemctl kill --signal=KILL conntrackd")
    assert eventually(lambda: int(pair.exec(backup, "systemctl show -P NRestarts conntrackd").stdout) > 2)
    found = await proof(pair)
    assert isinstance(found, Trouble)
    assert found.reason is Reason.PAIR_NOT_SYNCED
    assert f"does not start on {backup}" in found.sentence
    (lock,) = re.findall(r"lock file (\S+)\.", found.sentence)
    pair.exec(backup, f"rm {lock} && systemctl start conntrackd")
    found = await proof(pair)
    assert isinstance(found, Proof), found


@pytest.mark.parametrize("restarted", ["conntrackd", "keepalived"])
async def test_a_conntrackd_that_is_killed_as_a_patch_starts_it_is_started_again(pair: Lab, restarted: str) -> None:
    """By the patch itself, or by the notify script of the keepalived that the patch restarts."""
    _, backup = roles(pair)
    as_on_a_router(pair, backup)
    pair.exec(backup, ["sh", "-c", f"setsid sh -c '{KILL_THE_NEXT}' >/dev/null 2>&1 &"])
    wanted = new_template() if restarted == "conntrackd" else new_keepalived_unit()
    report = await patch(pair, backup, wanted)
    assert report.phase is JournalPhase.COMMITTED, told(report)
    assert pair.exec(backup, "cat /run/killed").stdout.strip(), "no conntrackd was killed"
    assert "left its lock file" in told(report), told(report)
    found = await proven(pair)
    assert isinstance(found, Proof), found


async def test_keepalived_that_is_stopped_and_not_restarted_leaves_two_public_sides_up(pair: Lab) -> None:
    """keepalived runs no notify script when it stops: that is why a planned failover is a restart."""
    primary, backup = roles(pair)
    pair.exec(primary, "systemctl stop keepalived")
    assert eventually(lambda: pair.role(backup) is RedundancyRole.PRIMARY)
    assert eventually(lambda: public_is_up(pair, backup))
    assert public_is_up(pair, primary), "nobody has told the router that it is BACKUP"
    found = await proof(pair)
    assert isinstance(found, Trouble)
    assert found.reason is Reason.NO_SINGLE_PRIMARY
    pair.exec(primary, "systemctl start keepalived")
    assert eventually(lambda: not public_is_up(pair, primary))
    found = await proof(pair)
    assert isinstance(found, Proof), found
    assert found.primary == backup


async def test_a_new_template_of_conntrackd_moves_nothing_now_or_later(pair: Lab) -> None:
    """Without its patch the next command of the management server restarts keepalived: a failover."""
    primary, backup = roles(pair)
    wanted = new_template()
    for name in (backup, primary):
        before = main_pid(pair, name, "keepalived"), main_pid(pair, name, "conntrackd")
        report = await patch(pair, name, wanted)
        assert report.phase is JournalPhase.COMMITTED, told(report)
        assert [(action.name, action.action) for action in report.services] == [("conntrackd", "Restart")]
        assert "131072" in pair.read_bytes(name, "/etc/conntrackd/conntrackd.conf").decode()
        after = main_pid(pair, name, "keepalived"), main_pid(pair, name, "conntrackd")
        assert after[0] == before[0]
        assert after[1] != before[1]
        found = await proof(pair)
        assert isinstance(found, Proof), found
        assert found.primary == primary
        configure(pair, name)
        assert (main_pid(pair, name, "keepalived"), main_pid(pair, name, "conntrackd")) == after
    assert roles(pair) == (primary, backup)


async def test_a_keepalived_that_must_restart_is_a_failover_only_with_leave(pair: Lab) -> None:
    primary, backup = roles(pair)
    wanted = new_keepalived_unit()
    report = await patch(pair, backup, wanted)
    assert report.phase is JournalPhase.COMMITTED, told(report)
    assert roles(pair) == (primary, backup)
    assert isinstance(await proof(pair), Proof)

    with pytest.raises(Refused) as refused:
        await patch(pair, primary, wanted)
    assert refused.value.reason is Reason.FAILOVER_NOT_ALLOWED
    assert roles(pair) == (primary, backup)

    seen = await LivePatcher().observe(target_of(pair, primary), wanted)
    (loss,) = [action.expected_loss for action in seen.actions if action.name == "keepalived"]
    assert "failover" in loss
    report = await patch(pair, primary, wanted, may_fail_over=True)
    assert report.phase is JournalPhase.COMMITTED, told(report)
    assert "BACKUP" in report.message, told(report)
    found = await proof(pair)
    assert isinstance(found, Proof), found
    assert found.primary == backup


async def test_a_failover_after_which_two_machines_answer_takes_the_patch_back(pair: Lab) -> None:
    primary, backup = roles(pair)
    gateway = tenants_gateway(pair, primary)
    pair.exec(backup, "ip link add link eth0 name thief type macvlan mode bridge && ip link set thief up")
    pair.exec(backup, f"ip addr add {gateway}/32 dev thief")
    report = await patch(pair, primary, new_keepalived_unit(), may_fail_over=True)
    assert report.phase is JournalPhase.ROLLED_BACK, told(report)
    assert report.reason is Reason.DUPLICATE_PRIMARY
    assert pair.exec(primary, f"test -e /{KEEPALIVED_UNIT}", check=False).returncode == 1
