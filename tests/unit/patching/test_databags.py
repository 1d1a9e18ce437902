"""Which change asks for which run of configure.py, on which VM."""

from __future__ import annotations

import pytest
from tests.unit.patching.test_diff import OLD, PREVIOUS, facts_of

from lab.content import payloads, releases
from sysvm.api.endpoint import SystemVMType
from sysvm.api.methods import Databags
from sysvm.api.systemvm import PlannedAction
from sysvm.domain.system_vm_status import AT_NEXT_COMMAND, RERUN, as_allowed
from sysvm.patching.databags import DATABAGS, Databag, databag_order, databags_for
from sysvm.patching.diff import compare
from sysvm.patching.ownership import is_forbidden, known_paths
from sysvm.patching.payload import read_payload
from sysvm.patching.remote import order as orders


def changed(*paths: str, vm_type: SystemVMType = SystemVMType.ROUTER) -> list[str]:
    start = releases.old()
    release = start.derive("bags", change={path: start.scripts[path] + b"# more\n" for path in paths})
    payload = read_payload(payloads.build_scripts(release), None)
    return [bag.name for bag in compare(payload, vm_type, PREVIOUS, facts_of(OLD), {}).databags]


def test_exactly_the_bags_of_the_changed_files_are_meant() -> None:
    folder = "opt/cloud/bin/cs/"
    assert changed(folder + "CsLoadBalancer.py") == ["load_balancer.json"]
    assert changed("etc/xl2tpd/xl2tpd.conf", "etc/ipsec.d/l2tp.conf") == ["remote_access_vpn.json"]
    assert changed(folder + "CsDhcp.py", folder + "CsMonitor.py") == ["vm_dhcp_entry.json", "monitor_service.json"]
    assert changed("opt/cloud/bin/configure.py", folder + "CsHelper.py") == []


def test_a_type_without_the_configuration_is_not_acted_on() -> None:
    path = "opt/cloud/bin/cs/CsLoadBalancer.py"
    for vm_type in (SystemVMType.SECSTORAGE, SystemVMType.CONSOLEPROXY, SystemVMType.ELBVM, SystemVMType.DHCPSRVR):
        assert changed(path, vm_type=vm_type) == []
    assert [bag.name for bag in databags_for(["/opt/cloud/bin/cs/CsDhcp.py"], SystemVMType.DHCPSRVR)]


@pytest.mark.parametrize("bag", DATABAGS, ids=lambda bag: bag.name)
def test_the_table_fits_the_payload_the_plan_and_the_program(bag: Databag) -> None:
    assert set(bag.made_by) <= known_paths()
    assert not any(is_forbidden(path.lstrip("/")) for path in bag.generated)
    PlannedAction(name=bag.title, action=RERUN, expected_loss=bag.expected_loss)
    orders._check_bag(databag_order(bag, 600))


def test_the_plan_says_what_the_policy_lets_happen() -> None:
    reload = PlannedAction(name="apache2", action="Reload")
    rerun = PlannedAction(name="configure.py load_balancer.json", action=RERUN, expected_loss="egress")
    assert as_allowed((reload, rerun), Databags.NEEDED) == (reload, rerun)
    told = as_allowed((reload, rerun), Databags.NEVER)
    assert [(one.action, one.expected_loss) for one in told] == [("Reload", "none"), (AT_NEXT_COMMAND, "none")]
