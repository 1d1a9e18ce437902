"""Lists of a real server become plain values: what decides is checked, what informs may be missing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.unit.cloudstack.recorded import READERS, inner

from sysvm.api.endpoint import SystemVMType
from sysvm.api.observed import RedundancyRole
from sysvm.cloudstack import answers
from sysvm.cloudstack.errors import AnswerInvalid
from sysvm.domain.cloud import CloudVMState
from sysvm.domain.room import HostRoom


def entries(name: str, key: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = inner(name)[key]
    return found


def router(**changes: Any) -> dict[str, Any]:
    return {**entries("listRouters", "router")[0], **changes}


def without(entry: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in names}


def test_a_router_as_recorded() -> None:
    vm = answers.router(router())
    assert vm.id == "953fc7ba-015a-4be5-8e54-fd1f1df2e426"
    assert (vm.name, vm.type, vm.state) == ("r-4-VM", SystemVMType.ROUTER, CloudVMState.RUNNING)
    assert (vm.zone, vm.pod, vm.hypervisor, vm.arch) == ("Sandbox-simulator", "POD0", "Simulator", "x86_64")
    assert vm.host_id == "1c11dcdf-1530-4814-874f-93e372c6bf8c"
    assert (vm.network, vm.vpc_id) == ("net1", None)
    assert (vm.control_address, vm.public_address, vm.guest_address) == ("169.254.136.227", "192.168.2.4", "10.1.1.1")
    assert (vm.redundant, vm.role) == (False, None)
    assert (vm.template_version, vm.software_version) == ("4.10.0", "4.21.0.0")
    assert vm.scripts_version == "77281983-844e-482d-9ede-5d4dc303614e"
    assert vm.requires_upgrade is False
    assert (vm.account, vm.domain, vm.project) == ("admin", "/", None)
    assert vm.created == datetime(2026, 11, 22, 16, 21, 2, tzinfo=UTC)
    assert (vm.agent_state, vm.viewer_sessions, vm.job_id) == (None, None, None)


def test_a_pair_tells_its_roles() -> None:
    pair = [answers.router(entry) for entry in entries("listRouters.redundant.primary", "router")]
    assert [vm.role for vm in pair] == [RedundancyRole.PRIMARY, RedundancyRole.BACKUP]
    assert all(vm.redundant and vm.type is SystemVMType.VPCROUTER for vm in pair)


def test_a_vpc_router_without_tiers_has_no_network() -> None:
    [entry] = entries("listRouters.vpc-without-tiers", "router")
    vm = answers.router(entry)
    assert (vm.network_id, vm.network, vm.vpc) == (None, None, "empty")


def test_secondary_storage_and_console_proxy_as_recorded() -> None:
    console, storage = (answers.system_vm(entry) for entry in entries("listSystemVms", "systemvm"))
    assert (console.type, console.viewer_sessions) == (SystemVMType.CONSOLEPROXY, 0)
    assert (console.agent_state, console.software_version) == (None, None), "it has not registered yet"
    assert (storage.type, storage.agent_state) == (SystemVMType.SECSTORAGE, "Up")
    assert (storage.software_version, storage.viewer_sessions) == ("4.21.0.0-SNAPSHOT", None)
    assert storage.private_address == "172.16.15.30"
    assert storage.account is None


def test_hosts_zones_vpcs_templates_and_the_version_as_recorded() -> None:
    host = answers.host(entries("listHosts", "host")[0])
    assert (host.address, host.state, host.resource_state, host.cluster) == ("172.16.15.5", "Up", "Enabled", "C0")
    zone = answers.zone(entries("listZones", "zone")[0])
    assert (zone.name, zone.enabled, zone.network_type) == ("Sandbox-simulator", True, "Advanced")
    assert (zone.min_template_version, zone.version_check, zone.recreating_checks) == (None, None, None)
    vpc = answers.vpc(entries("listVPCs", "vpc")[0])
    assert (vpc.name, vpc.redundant, vpc.tiers[0]) == ("vpc1", False, "812c8dbd-5e23-4b7d-872f-c9b5a8c7f764")
    template = answers.template(entries("listTemplates.all.SYSTEM", "template")[0])
    assert (template.type, template.ready, template.checksum) == ("SYSTEM", True, None)
    assert answers.server_version(inner("listCapabilities")) == "4.21.0.0-SNAPSHOT"


def test_what_is_left_on_a_host_as_recorded_and_where_it_is_not_told() -> None:
    entry = entries("listHosts", "host")[1]
    host_id, room = answers.host_room(entry)
    assert host_id == "7190280d-c652-4a86-90e4-62104bea22ce"
    assert room == HostRoom(memory_bytes=8589934592 - 536870912, cpu_mhz=320000 - 500)
    told = {key: entry[key] for key in ("id", "memoryallocatedbytes", "cpuallocatedvalue")}
    assert answers.host_room(told)[1] == HostRoom(None, None)
    assert answers.host_room({**entry, "memorywithoverprovisioning": "much"})[1].memory_bytes is None
    assert answers.host_room({**entry, "cpuwithoverprovisioning": "9600.5"})[1].cpu_mhz == 9100


def test_a_management_server_as_recorded() -> None:
    server = answers.management_server(entries("listManagementServers", "managementserver")[0])
    assert (server.name, server.state, server.version) == ("localhost", "Up", "4.21.0.0-SNAPSHOT")


def test_free_capacity_is_what_is_not_used() -> None:
    """No answer of listCapacity was recorded; fields as in CloudStack 4.21 CapacityResponse."""
    assert answers.free_capacity({"type": 4, "capacityused": 3, "capacitytotal": 10, "percentused": "30"}) == (4, 7)
    assert answers.free_capacity({"type": 5, "capacitytotal": 10}) == (5, None)
    with pytest.raises(AnswerInvalid):
        answers.free_capacity({"type": "memory"})


def test_a_tier_is_a_network_of_its_vpc() -> None:
    vpc = entries("listVPCs", "vpc")[0]
    tier = answers.network({**vpc["network"][0], "vpcid": vpc["id"]})
    assert (tier.name, tier.state, tier.vpc_id) == ("tier1", "Implemented", vpc["id"])


@pytest.mark.parametrize("name", ["rebootRouter.job", "stopRouter.job", "startRouter.job"])
def test_the_router_in_the_result_of_a_job_has_the_form_of_the_list(name: str) -> None:
    assert answers.router(inner(name)["jobresult"]["router"]).name.startswith("r-")


def test_the_restart_of_a_network_tells_nothing_of_its_routers() -> None:
    assert inner("restartNetwork.cleanup.job")["jobresult"] == {"success": True}


@pytest.mark.parametrize("name", ["destroySystemVm.ssvm.job", "rebootSystemVm.job", "stopSystemVm.job"])
def test_the_system_vm_in_the_result_of_a_job_has_the_form_of_the_list(name: str) -> None:
    vm = answers.system_vm(inner(name)["jobresult"]["systemvm"])
    assert vm.type.runs_agent
    assert vm.name[:2] in ("s-", "v-")


PUBLIC, GUEST = {"traffictype": "Public"}, {"traffictype": "Guest", "type": "Shared"}


@pytest.mark.parametrize(
    ("changes", "missing", "expected"),
    [
        ({}, (), SystemVMType.ROUTER),
        ({"vpcid": "V"}, (), SystemVMType.VPCROUTER),
        ({"nic": [GUEST]}, ("publicip",), SystemVMType.DHCPSRVR),
        ({}, ("publicip", "nic"), SystemVMType.DHCPSRVR),
        ({"nic": [GUEST, PUBLIC]}, ("publicip",), SystemVMType.ROUTER),
        ({"state": "Stopped"}, ("publicip", "nic"), SystemVMType.ROUTER),
        ({"role": "INTERNAL_LB_VM", "vpcid": "V"}, (), SystemVMType.ILBVM),
        ({"role": "LB"}, (), SystemVMType.ELBVM),
    ],
)
def test_the_type_of_a_router_follows_from_what_it_has(
    changes: dict[str, Any], missing: tuple[str, ...], expected: SystemVMType
) -> None:
    assert answers.router({**without(router(), *missing), **changes}).type is expected


def test_an_internal_load_balancer_is_one_by_its_list() -> None:
    assert answers.internal_load_balancer(without(router(vpcid="V"), "role")).type is SystemVMType.ILBVM


def test_ids_are_compared_in_lower_case() -> None:
    vm = answers.router(router(id="953FC7BA-015A-4BE5-8E54-FD1F1DF2E426", hostid=" ABC "))
    assert (vm.id, vm.host_id) == ("953fc7ba-015a-4be5-8e54-fd1f1df2e426", "abc")


@pytest.mark.parametrize("state", ["Restoring", "running", "new in a later release"])
def test_a_state_that_is_not_known_is_unknown(state: str) -> None:
    assert answers.router(router(state=state)).state is CloudVMState.UNKNOWN


@pytest.mark.parametrize(
    ("word", "role"),
    [("MASTER", RedundancyRole.PRIMARY), ("FAULT", RedundancyRole.FAULT), ("NEW", RedundancyRole.UNKNOWN)],
)
def test_roles_have_the_words_of_today(word: str, role: RedundancyRole) -> None:
    assert answers.router(router(isredundantrouter=True, redundantstate=word)).role is role


def test_a_router_that_never_started_has_no_versions() -> None:
    vm = answers.router(without(router(version="UNKNOWN", state="Stopped", hostid=""), "scriptsversion", "hostname"))
    assert (vm.template_version, vm.scripts_version, vm.host_id, vm.host) == (None, None, None, None)


def test_a_trailing_newline_is_no_part_of_a_checksum() -> None:
    assert answers.router(router(scriptsversion="abc\n")).scripts_version == "abc"


@pytest.mark.parametrize(("status", "job"), [(0, "j"), (1, None), (2, None), (None, "j")])
def test_only_a_job_that_has_not_ended_works_on_a_vm(status: int | None, job: str | None) -> None:
    changes: dict[str, Any] = {"jobid": "J"} | ({} if status is None else {"jobstatus": status})
    assert answers.router(router(**changes)).job_id == job


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"id": None}, "router.id"),
        ({"id": ""}, "router.id"),
        ({"id": 4}, "router.id"),
        ({"name": ["r-4-VM"]}, "router.name"),
        ({"state": None}, "router.state"),
        ({"zoneid": 1}, "router.zoneid"),
        ({"hostid": 7}, "router.hostid"),
        ({"isredundantrouter": "maybe"}, "router.isredundantrouter"),
        ({"requiresupgrade": "false"}, "router.requiresupgrade"),
        ({"vpcid": {}}, "router.vpcid"),
        ({"linklocalip": 1}, "router.linklocalip"),
    ],
)
def test_a_wrong_type_of_what_decides_is_an_error_that_names_the_path(changes: dict[str, Any], path: str) -> None:
    with pytest.raises(AnswerInvalid, match=f"{path}:") as caught:
        answers.router(router(**changes))
    assert "router" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"), [("podname", 4), ("created", "long ago"), ("created", 5), ("arch", []), ("nic", "none")]
)
def test_a_wrong_type_of_what_informs_is_as_if_it_were_missing(field: str, value: object) -> None:
    assert answers.router(router(**{field: value})) == answers.router(without(router(), field))


def test_fields_of_a_later_release_are_ignored() -> None:
    assert answers.router(router(newfield={"a": [1]})) == answers.router(router())


@pytest.mark.parametrize("kind", ["consoleproxyplus", 4])
def test_a_system_vm_of_a_kind_that_is_not_known_is_an_error(kind: str | int) -> None:
    with pytest.raises(AnswerInvalid, match="systemvmtype"):
        answers.system_vm({**entries("listSystemVms", "systemvm")[0], "systemvmtype": kind})


def test_tags_are_a_mapping_and_odd_ones_none() -> None:
    vpc = entries("listVPCs", "vpc")[0]
    assert dict(answers.vpc({**vpc, "tags": [{"key": "patch", "value": "late", "x": 1}]}).tags) == {"patch": "late"}
    assert dict(answers.vpc({**vpc, "tags": "none"}).tags) == {}


def test_a_setting_has_a_name_and_perhaps_a_value() -> None:
    assert answers.setting({"name": "router.version.check", "value": "true"}) == ("router.version.check", "true")
    assert answers.setting({"name": "router.template.kvm"}) == ("router.template.kvm", None)


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_an_empty_entry_is_an_error_of_ours(read: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(AnswerInvalid):
        read({})
