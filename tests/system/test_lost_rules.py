"""A router of the lab that reboots from within: it loses its data bags as a real one, and the looks say so."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import timedelta

import pytest

from lab import Lab, SystemVMType, VMSpec, preflight
from lab.content.layout import PUSHES
from reach import target_of
from sysvm.api.observed import Observed
from sysvm.domain.rules import PROGRAMMING
from sysvm.engine.observed import observed_from
from sysvm.patching.live import LivePatcher

pytestmark = [
    pytest.mark.systemvm,
    pytest.mark.skipif(preflight.missing() is not None, reason=preflight.missing() or ""),
]

NAME, DHCP, STORAGE = "r-81-VM", "d-82-VM", "s-83-VM"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("rules"))
    try:
        made.up(
            [
                VMSpec(name=NAME, type=SystemVMType.ROUTER, index=81, group="net-81"),
                VMSpec(name=DHCP, type=SystemVMType.DHCPSRVR, index=82),
                VMSpec(name=STORAGE, type=SystemVMType.SECSTORAGE, index=83),
            ],
            release="old",
        )
        yield made
    finally:
        made.down()


async def look(lab: Lab, name: str, before: Observed | None, *, later: timedelta = timedelta()) -> Observed:
    """A look at the VM, noted as if it had been made so much `later`."""
    found = await LivePatcher().observe(target_of(lab, name), None)
    found = dataclasses.replace(found, at=found.at + later)
    return observed_from(before, found, force_time=True, refresh=timedelta(hours=1), operation=None)


@pytest.mark.timeout(500)
async def test_a_router_that_rebooted_by_itself_has_lost_its_rules_until_they_are_sent(lab: Lab) -> None:
    programmed = await look(lab, NAME, None)
    assert programmed.data_bags is not None
    sent = programmed.data_bags.held
    assert sent >= 3, lab.exec(NAME, "ls /etc/cloudstack").stdout

    lab.reboot(NAME)  # the lab's management server sends everything at a boot, as at a start by CloudStack
    started = await look(lab, NAME, programmed)
    assert started.boot_id != programmed.boot_id
    assert started.data_bags == programmed.data_bags

    lab.exec(NAME, f"mv {PUSHES} {PUSHES}.kept")  # ... and of this one it learns nothing
    lab.reboot(NAME)
    first = await look(lab, NAME, started)
    assert first.data_bags is not None
    assert (first.data_bags.held, first.data_bags.before, first.data_bags.lost) == (0, sent, False)
    second = await look(lab, NAME, Observed.model_validate_json(first.model_dump_json()), later=PROGRAMMING)
    assert second.data_bags is not None
    assert second.data_bags.lost

    lab.exec(NAME, f"mv {PUSHES}.kept {PUSHES} && systemctl restart lab-management-push")
    again = await look(lab, NAME, second, later=2 * PROGRAMMING)
    assert again.data_bags == programmed.data_bags


@pytest.mark.timeout(300)
async def test_few_bags_are_no_loss_and_an_ssvm_has_none(lab: Lab) -> None:
    assert (await look(lab, STORAGE, None)).data_bags is None
    before = await look(lab, DHCP, None)
    assert before.data_bags is not None
    assert before.data_bags.held >= 1
    lab.reboot(DHCP)
    first = await look(lab, DHCP, before)
    second = await look(lab, DHCP, first, later=PROGRAMMING)
    assert first.data_bags == second.data_bags == before.data_bags
