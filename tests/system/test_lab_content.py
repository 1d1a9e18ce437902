"""The lab's VMs behave like CloudStack's where it matters to a patch: services, roles, answers, boots, a bad setting.

A load balancer VM on the guest network of the single router plays a tenant: it has the tools and the right wire.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from lab import DEFAULT_FLEET, Lab, SystemVMType, VMSpec, preflight
from lab.content import bootline, layout, payloads, releases
from lab.spec import Segment

pytestmark = [
    pytest.mark.systemvm,
    pytest.mark.skipif(preflight.missing() is not None, reason=preflight.missing() or ""),
]

PAIR, SINGLE, STORAGE = ("r-101-VM", "r-102-VM"), "r-103-VM", "s-104-VM"
TENANT = VMSpec(name="l-9-VM", type=SystemVMType.ILBVM, index=9, group="net-2")
OTHERS = (
    VMSpec(name="v-5-VM", type=SystemVMType.CONSOLEPROXY, index=5),
    VMSpec(name="r-2-VM", type=SystemVMType.VPCROUTER, index=2, group="vpc-1"),
    VMSpec(name="r-3-VM", type=SystemVMType.DHCPSRVR, index=3, group="shared"),
    VMSpec(name="l-4-VM", type=SystemVMType.ELBVM, index=4),
)
HEARTBEAT = "/ramdisk/rrouter/keepalived.ts"
WATCHED = {"ssh", "cloud", "haproxy", "apache2", "dnsmasq", "keepalived", "conntrackd"}
ACTIVE = {
    SystemVMType.ROUTER: {"ssh", "haproxy", "apache2", "dnsmasq"},
    SystemVMType.VPCROUTER: {"ssh", "haproxy", "apache2", "dnsmasq"},
    SystemVMType.DHCPSRVR: {"ssh", "apache2", "dnsmasq"},
    SystemVMType.ELBVM: {"ssh", "haproxy"},
    SystemVMType.ILBVM: {"ssh", "haproxy"},
    SystemVMType.SECSTORAGE: {"ssh", "cloud", "apache2"},
    SystemVMType.CONSOLEPROXY: {"ssh", "cloud"},
}

MEMBER = f"""
import http.server
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.connection.getsockname()[0].encode())
http.server.HTTPServer(("", {bootline.MEMBER_PORT}), Answer).serve_forever()
"""
"""A member of the load balancer that says on which address it was asked."""
DISCOVER = """
import socket, struct, sys
mac = bytes.fromhex(sys.argv[1].replace(":", ""))
wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
wire.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
wire.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
wire.bind(("", 68))
wire.settimeout(5)
head = struct.pack("!BBBBIHH", 1, 1, 6, 0, 7, 0, 0x8000) + bytes(16) + mac + bytes(10 + 64 + 128)
wire.sendto(head + b"\\x63\\x82\\x53\\x63" + b"\\x35\\x01\\x01" + b"\\xff", ("255.255.255.255", 67))
print(socket.inet_ntoa(wire.recv(1500)[16:20]))
"""
"""Asks for an address with the MAC of its argument, as a DHCP client does first, and prints what it is offered."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    try:
        lab.up([*DEFAULT_FLEET, TENANT, *OTHERS], release="4.20.1")
        for member in tenant_addresses(lab):
            lab.exec(TENANT.name, f"ip addr add {member}/24 dev eth0")
        # The tenant's firewall is a load balancer's: it would drop what the router sends to its members.
        lab.exec(TENANT.name, f"iptables -I INPUT -s {guest_gateway(lab, SINGLE)} -j ACCEPT")
        yield lab
    finally:
        lab.down()


def eventually(happens: Callable[[], bool], *, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if happens():
            return True
        time.sleep(0.1)
    return happens()


def active(lab: Lab, name: str) -> set[str]:
    words = " ".join(sorted(WATCHED))
    answer = lab.exec(name, f"systemctl is-active {words}", check=False).stdout.split()
    return {unit for unit, state in zip(sorted(WATCHED), answer, strict=True) if state == "active"}


def is_active(lab: Lab, name: str, units: set[str]) -> bool:
    return active(lab, name) == units


def beats(lab: Lab, name: str) -> bool:
    return 0 <= time.time() - float(lab.read_bytes(name, HEARTBEAT)) < 10


def role(lab: Lab, name: str) -> str:
    return lab.exec(name, "/opt/cloud/bin/checkrouter.sh").stdout.strip()


def roles(lab: Lab) -> list[str]:
    return sorted(role(lab, name) for name in PAIR)


def primary_and_backup(lab: Lab) -> tuple[str, str]:
    assert eventually(lambda: roles(lab) == ["Status: BACKUP", "Status: PRIMARY"])
    first, second = PAIR
    return (first, second) if role(lab, first) == "Status: PRIMARY" else (second, first)


def guest_gateway(lab: Lab, name: str) -> str:
    gateway = bootline.guest_gateway(lab.vm(name))
    assert gateway is not None
    return str(gateway.ip)


def tenant_addresses(lab: Lab) -> list[str]:
    address = lab.vm(SINGLE).nic(Segment.GUEST).address
    assert address is not None
    return [str(tenant.address) for tenant in bootline.tenants(address)]


def resolves(lab: Lab, client: str, server: str) -> bool:
    answer = lab.exec(client, f"dig +short +time=1 +tries=1 @{server} tenant-1.{bootline.DOMAIN}", check=False)
    return answer.stdout.strip().endswith(".251")


def status_of(lab: Lab, client: str, url: str, *, source: str = "") -> str:
    interface = f"--interface {source}" if source else ""
    command = f"curl -s -m 3 -o /dev/null -w '%{{http_code}}' {interface} '{url}'"
    return lab.exec(client, command, check=False).stdout


def test_all_seven_types_boot_with_the_services_of_their_lists(lab: Lab) -> None:
    primary, backup = primary_and_backup(lab)
    for vm in lab.vms():
        expected = ACTIVE[vm.spec.type]
        if vm.spec.redundant:
            expected = {"ssh", "haproxy", "apache2", "keepalived", "conntrackd"}
            expected |= {"dnsmasq"} if vm.name == primary else set()
        assert eventually(partial(is_active, lab, vm.name, expected)), vm.name
        assert lab.exec(vm.name, ["systemctl", "is-system-running"]).stdout == "running\n"
        enabled, disabled = layout.service_lists(vm)
        assert lab.read_bytes(vm.name, "/var/cache/cloud/enabled_svcs").decode() == enabled
        assert lab.read_bytes(vm.name, "/var/cache/cloud/disabled_svcs").decode() == disabled
    assert {vm.spec.type for vm in lab.vms()} == set(SystemVMType)
    assert "dnsmasq" not in active(lab, backup)


def test_sshd_listens_on_the_control_address_only(lab: Lab) -> None:
    for vm in lab.vms():
        listening = lab.exec(vm.name, "ss -Hlnt 'sport = 3922' | awk '{print $4}'").stdout.split()
        assert listening == [f"{vm.control_address}:3922"], vm.name


def test_of_a_pair_one_has_the_gateway_the_public_side_and_the_passwords(lab: Lab) -> None:
    primary, backup = primary_and_backup(lab)
    gateway = guest_gateway(lab, primary)
    for name, holds in ((primary, True), (backup, False)):
        addresses = lab.exec(name, "ip -4 -o addr show dev eth0").stdout
        assert (f"inet {gateway}/" in addresses) is holds
        assert ("state UP" in lab.exec(name, "ip link show dev eth2").stdout) is holds
        state = "PRIMARY" if holds else "BACKUP"
        assert f'"redundant_state": "{state}"' in lab.read_bytes(name, "/etc/cloudstack/cmdline.json").decode()
        servers = lab.exec(name, "systemctl list-units --no-legend 'cloud-password-server@*'").stdout
        assert (gateway in servers) is holds
        assert eventually(partial(beats, lab, name))


def test_a_failover_moves_everything_and_does_not_come_back_by_itself(lab: Lab) -> None:
    primary, backup = primary_and_backup(lab)
    gateway = guest_gateway(lab, primary)
    lab.exec(primary, "systemctl restart keepalived")
    assert eventually(lambda: (role(lab, backup), role(lab, primary)) == ("Status: PRIMARY", "Status: BACKUP"))
    assert eventually(lambda: "dnsmasq" in active(lab, backup) and "dnsmasq" not in active(lab, primary))
    assert eventually(lambda: resolves(lab, primary, gateway))
    time.sleep(5)  # five adverts: a router that preempts would have taken the role back
    assert role(lab, backup) == "Status: PRIMARY"


def test_a_power_cut_of_the_primary_leaves_the_other_serving(lab: Lab) -> None:
    primary, backup = primary_and_backup(lab)
    gateway = guest_gateway(lab, primary)
    lab.power_off(primary)
    try:
        assert eventually(lambda: role(lab, backup) == "Status: PRIMARY")
        assert eventually(lambda: resolves(lab, backup, gateway))
        assert "state UP" in lab.exec(backup, "ip link show dev eth2").stdout
    finally:
        lab.power_on(primary)
    assert primary_and_backup(lab) == (backup, primary)


def test_names_metadata_and_passwords_are_served_to_tenants(lab: Lab) -> None:
    gateway, tenant = guest_gateway(lab, SINGLE), tenant_addresses(lab)[0]
    assert resolves(lab, TENANT.name, gateway)
    for path in ("user-data", "meta-data/instance-id", "meta-data/availability-zone"):
        assert status_of(lab, TENANT.name, f"http://{gateway}/latest/{path}", source=tenant) == "200", path
    ask = f"curl -s -m 3 --interface {tenant} -H 'DomU_Request: send_my_password' http://{gateway}:8080/"
    assert lab.exec(TENANT.name, f"{ask} -o /dev/null -w '%{{http_code}}'").stdout == "200"


def test_a_tenant_is_offered_the_address_of_its_mac(lab: Lab) -> None:
    address = lab.vm(SINGLE).nic(Segment.GUEST).address
    assert address is not None
    for tenant in bootline.tenants(address):
        offered = lab.exec(TENANT.name, ["python3", "-c", DISCOVER, tenant.mac], check=False)
        assert offered.stdout.strip() == str(tenant.address), offered.stderr


def test_the_load_balancer_goes_round_its_members(lab: Lab) -> None:
    public = bootline.held_address(lab.vm(SINGLE).nic(Segment.PUBLIC))
    assert public is not None
    lab.exec(TENANT.name, ["systemd-run", "--collect", "--unit=member", "python3", "-c", MEMBER])
    ask = f"curl -s -m 3 http://{public.ip}:{bootline.LOAD_BALANCER_PORT}/"
    seen: set[str] = set()

    def all_answered() -> bool:
        seen.add(lab.exec(STORAGE, ask, check=False).stdout)
        return seen >= set(tenant_addresses(lab))

    try:
        assert eventually(all_answered)
    finally:
        lab.exec(TENANT.name, "systemctl stop member")


def test_tenants_reach_the_outside_through_the_router(lab: Lab) -> None:
    gateway = guest_gateway(lab, SINGLE)
    lab.exec(TENANT.name, f"ip route replace default via {gateway}")
    storage = lab.vm(STORAGE).nic(Segment.PUBLIC).address
    assert storage is not None
    assert eventually(lambda: lab.exec(TENANT.name, f"ping -c1 -W1 {storage.ip}", check=False).returncode == 0)


def test_all_nine_health_checks_speak_and_pass(lab: Lab) -> None:
    lab.exec(SINGLE, "/opt/cloud/bin/getRouterMonitorResults.sh true")
    text = lab.exec(SINGLE, "/opt/cloud/bin/getRouterMonitorResults.sh").stdout
    assert text.count('"success": "true"') == 9
    assert text.splitlines()[:3] == ["FAILING CHECKS:", text.splitlines()[1], "MONITOR RESULTS:"]
    assert text.splitlines()[1].strip() == ""


def test_a_check_fails_when_what_it_looks_at_is_wrong(lab: Lab) -> None:
    check = "/root/health_checks/router_version_check.py basic"
    signature = lab.read_bytes(SINGLE, layout.SIGNATURE)
    lab.write_bytes(SINGLE, layout.SIGNATURE, b"0" * 32 + b"\n")
    try:
        failed = lab.exec(SINGLE, check, check=False)
        assert (failed.returncode, failed.stdout) == (1, "scripts version differs\n")
    finally:
        lab.write_bytes(SINGLE, layout.SIGNATURE, signature)
    assert lab.exec(SINGLE, check).returncode == 0


def test_the_template_version_is_told_as_cloudstack_reads_it(lab: Lab) -> None:
    line, signature = lab.exec(SINGLE, "/opt/cloud/bin/get_template_version.sh").stdout.strip().split("&")
    assert line.split()[2] == "4.20.1"
    archive = lab.read_bytes(SINGLE, layout.INSTALLED_PAYLOAD)
    assert signature == payloads.checksum(releases.old(), archive)


@pytest.mark.parametrize("which", ["single", "primary", "storage"])
def test_the_broken_setting_passes_its_own_test_and_kills_apache2(lab: Lab, which: str) -> None:
    name = {"single": SINGLE, "storage": STORAGE}.get(which) or primary_and_backup(lab)[0]
    path = f"/{releases.SECURITY_CONF}"
    good = lab.read_bytes(name, path)
    lab.write_bytes(name, path, releases.broken().scripts[releases.SECURITY_CONF])
    try:
        assert lab.exec(name, "apachectl -t").returncode == 0
        lab.exec(name, "systemctl reload apache2", check=False)  # may say 0: the daemon dies a moment later
        assert eventually(lambda: "apache2" not in active(lab, name))
    finally:
        lab.write_bytes(name, path, good)
        lab.exec(name, "systemctl restart apache2")
    assert "apache2" in active(lab, name)


@pytest.mark.parametrize("release", [releases.new(), releases.mended()], ids=lambda release: release.name)
def test_the_good_settings_survive_a_reload(lab: Lab, release: releases.Release) -> None:
    path = f"/{releases.SECURITY_CONF}"
    good = lab.read_bytes(SINGLE, path)
    lab.write_bytes(SINGLE, path, release.scripts[releases.SECURITY_CONF])
    try:
        lab.exec(SINGLE, "systemctl reload apache2")
        headers = f"curl -s -m 3 -D- -o /dev/null http://{guest_gateway(lab, SINGLE)}/index.html"
        assert eventually(lambda: "ETag" not in lab.exec(SINGLE, headers).stdout)
        assert "200 OK" in lab.exec(SINGLE, headers).stdout
    finally:
        lab.write_bytes(SINGLE, path, good)
        lab.exec(SINGLE, "systemctl restart apache2")


class TestReboot:
    """Last: these change what the VMs run."""

    def test_a_reboot_keeps_the_scripts_and_comes_back_serving(self, lab: Lab) -> None:
        tops = [
            "/opt/cloud",
            "/root/health_checks",
            "/etc/apache2",
            "/etc/haproxy",
            "/usr/share/cloud",
            layout.SIGNATURE,
        ]
        lab.exec(SINGLE, "find /opt/cloud /root -name __pycache__ -prune -exec rm -rf {} +")
        before = lab.snapshot_tree(SINGLE, tops)
        lab.reboot(SINGLE)
        lab.exec(SINGLE, "find /opt/cloud /root -name __pycache__ -prune -exec rm -rf {} +")
        assert lab.snapshot_tree(SINGLE, tops) == before
        assert active(lab, SINGLE) == ACTIVE[SystemVMType.ROUTER]
        assert resolves(lab, TENANT.name, guest_gateway(lab, SINGLE))

    def test_without_the_management_server_a_reboot_loses_the_bags(self, lab: Lab) -> None:
        lab.exec(SINGLE, f"mv {layout.PUSHES} {layout.PUSHES}.off")
        try:
            lab.reboot(SINGLE)
            bags = lab.exec(SINGLE, "ls /etc/cloudstack").stdout.split()
            assert bags == ["cmdline.json", "ips.json"]
            assert not resolves(lab, TENANT.name, guest_gateway(lab, SINGLE))
        finally:
            lab.exec(SINGLE, f"mv {layout.PUSHES}.off {layout.PUSHES}")
            lab.exec(SINGLE, "systemctl start lab-management-push")
        assert eventually(lambda: resolves(lab, TENANT.name, guest_gateway(lab, SINGLE)))

    def test_a_router_installs_the_payload_that_its_host_sends(self, lab: Lab) -> None:
        archive = payloads.build_scripts(releases.new())
        lab.write_bytes(SINGLE, "/var/cache/cloud/cloud-scripts.tgz", archive)
        lab.reboot(SINGLE)
        expected = payloads.checksum(releases.new(), archive)
        assert lab.read_bytes(SINGLE, layout.SIGNATURE).decode().strip() == expected
        assert lab.read_bytes(SINGLE, layout.INSTALLED_PAYLOAD) == archive
        assert b"ManagedFile" in lab.read_bytes(SINGLE, "/opt/cloud/bin/cs/CsFile.py")
        assert (
            lab.exec(SINGLE, f"ls -d {layout.AGENT_HOME} /var/cache/cloud/cloud-scripts.tgz", check=False).stdout == ""
        )
        assert active(lab, SINGLE) == ACTIVE[SystemVMType.ROUTER]

    def test_a_storage_vm_installs_it_only_at_its_second_start(self, lab: Lab) -> None:
        before = lab.read_bytes(STORAGE, layout.SIGNATURE)
        archive = payloads.build_scripts(releases.new())
        lab.write_bytes(STORAGE, "/var/cache/cloud/cloud-scripts.tgz", archive)
        lab.reboot(STORAGE)
        assert lab.read_bytes(STORAGE, layout.SIGNATURE) == before
        assert lab.read_bytes(STORAGE, layout.INSTALLED_PAYLOAD) == archive
        lab.write_bytes(STORAGE, "/var/cache/cloud/cloud-scripts.tgz", archive)
        lab.reboot(STORAGE)
        expected = payloads.checksum(releases.new(), archive)
        assert lab.read_bytes(STORAGE, layout.SIGNATURE).decode().strip() == expected
        assert b"ManagedFile" in lab.read_bytes(STORAGE, "/opt/cloud/bin/cs/CsFile.py")
        assert eventually(lambda: active(lab, STORAGE) == ACTIVE[SystemVMType.SECSTORAGE])
