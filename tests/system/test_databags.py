"""A data bag is applied on a router of the lab, whose configure.py is as careless as CloudStack's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import asyncssh
import pytest
from tests.system.test_live_patch import payload, told

from lab import Lab, SystemVMType, VMSpec, preflight
from lab.content import releases
from reach import patch_order, target_of
from sysvm.api.reasons import Reason
from sysvm.patching.live import LivePatcher
from sysvm.patching.results import JournalPhase, OperationReport

pytestmark = [
    pytest.mark.systemvm,
    pytest.mark.skipif(preflight.missing() is not None, reason=preflight.missing() or ""),
]

NAME = "r-71-VM"
MODULE = "opt/cloud/bin/cs/CsLoadBalancer.py"
CONFIG = "/etc/haproxy/haproxy.cfg"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("bags"))
    try:
        made.up([VMSpec(name=NAME, type=SystemVMType.ROUTER, index=71, group="net-71")], release="old")
        yield made
    finally:
        made.down()


def release(name: str, more: bytes) -> releases.Release:
    """One whose load balancer is made otherwise."""
    start = releases.old()
    return start.derive(name, change={MODULE: start.scripts[MODULE] + more})


def bags(lab: Lab) -> dict[str, bytes]:
    names = lab.exec(NAME, "ls /etc/cloudstack").stdout.split()
    return {name: lab.read_bytes(NAME, f"/etc/cloudstack/{name}") for name in names}


async def patch(lab: Lab, wanted: releases.Release, number: int, *, databags: bool = True) -> OperationReport:
    ordered = patch_order(f"op-{number}", apply_databags=databags)
    return await LivePatcher().patch(target_of(lab, NAME), payload(wanted), ordered, lambda _: None)


async def push_until(lab: Lab, stop: asyncio.Event) -> int:
    """Pushes of the management server, one after the other, each over an ssh of its own. Raises if one fails."""
    vm, number = lab.vm(NAME), 0
    while not stop.is_set():
        name = f"forwarding_rules.json.{number}"
        text = json.dumps({"type": "forwardrules", f"198.51.100.{number}": []})
        push = f"echo '{text}' > /var/cache/cloud/{name} && /opt/cloud/bin/update_config.py {name}"
        async with asyncssh.connect(
            str(vm.relay_address),
            vm.port,
            username="root",
            client_keys=[str(lab.private_key)],
            known_hosts=asyncssh.import_known_hosts(lab.known_hosts()),
            config=None,
            login_timeout=60,
        ) as connection:
            await connection.run(push, check=True, timeout=60)
        number += 1
        await asyncio.sleep(0.3)
    return number


ANOTHER_LINE = b"""

_process = CsLoadBalancer.process


def process(self, rules):
    for entry in self.bag.get("config") or ():
        if "# applied" not in entry["configuration"]:
            entry["configuration"] = ["# applied"] + entry["configuration"]
    return _process(self, rules)


CsLoadBalancer.process = process
"""
WILD = b"""

def process(self, rules):
    del self.bag["config"]
    self.save()


CsLoadBalancer.process = process
"""


@pytest.mark.timeout(500)
async def test_a_bag_is_applied_only_where_the_order_says_so_and_costs_no_key(lab: Lab) -> None:
    before = bags(lab)
    one = release("bags-1", b"# another comment\n")
    plan = await LivePatcher().observe(target_of(lab, NAME), payload(one))
    assert [(bag.name, bag.possible) for bag in plan.databags] == [("configure.py load_balancer.json", True)]

    report = await patch(lab, release("bags-2", ANOTHER_LINE), 1, databags=False)
    assert report.phase is JournalPhase.COMMITTED, told(report)
    assert b"# applied" not in lab.read_bytes(NAME, CONFIG)

    stop = asyncio.Event()
    pushing = asyncio.create_task(push_until(lab, stop))
    report = await patch(lab, release("bags-3", ANOTHER_LINE + b"# again\n"), 2)
    stop.set()
    pushed = await pushing
    print(told(report), f"{pushed} pushes")
    assert report.phase is JournalPhase.COMMITTED, told(report)
    assert "Rerun" in {service.action for service in report.services}, told(report)
    assert b"# applied" in lab.read_bytes(NAME, CONFIG)
    now = bags(lab)
    for name, text in before.items():
        assert set(json.loads(text)) <= set(json.loads(now[name])), name
    assert pushed > 0
    assert {f"198.51.100.{number}" for number in range(pushed)} <= set(json.loads(now["forwardingrules.json"]))
    assert not lab.exec(NAME, "find / -xdev -path '*/.sysvm-*/databags*'").stdout.strip()


@pytest.mark.timeout(500)
async def test_a_run_that_empties_a_bag_goes_back_and_every_bag_is_as_it_was(lab: Lab) -> None:
    before, config = bags(lab), lab.read_bytes(NAME, CONFIG)
    report = await patch(lab, release("bags-wild", WILD), 3)
    print(told(report))
    assert report.phase is JournalPhase.ROLLED_BACK, told(report)
    assert report.reason is Reason.DATABAG_FAILED
    assert "loadbalancer.json has lost /config" in report.message
    assert bags(lab) == before
    assert lab.read_bytes(NAME, CONFIG) == config
    assert lab.exec(NAME, ["systemctl", "is-active", "haproxy"]).stdout.strip() == "active"


@pytest.mark.timeout(500)
async def test_a_bag_that_is_broken_already_refuses_before_anything_is_changed(lab: Lab) -> None:
    path = "/etc/cloudstack/vmdata.json"
    whole = lab.read_bytes(NAME, path)
    lab.exec(NAME, f"head -c 20 {path} > /tmp/half && cat /tmp/half > {path}")
    report = await patch(lab, release("bags-4", ANOTHER_LINE + b"# more\n"), 4)
    lab.exec(NAME, f"cat > {path} <<'BAG'\n{whole.decode()}BAG\n")
    assert report.phase is JournalPhase.ABANDONED, told(report)
    assert report.reason is Reason.DATABAG_FAILED
    assert "vmdata.json" in report.message
