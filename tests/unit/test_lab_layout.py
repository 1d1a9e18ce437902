"""A laid out root holds what a VM of its type has after its first start, and nothing is written outside of it."""

from __future__ import annotations

import json
import os
import stat
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from lab import network
from lab.content import bootline, layout, payloads, releases
from lab.content.tree import Tree
from lab.spec import VM, SystemVMType, VMSpec

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="the layout sets owners: run as root")
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKey lab"


def machine(kind: SystemVMType, *, redundant: bool = False, root: Path = Path("/nowhere")) -> VM:
    spec = VMSpec(name="x-7-VM", type=kind, index=7, group="net" if redundant else None, redundant=redundant)
    return VM(
        spec=spec,
        nics=network.nics_of(spec, network=3),
        control_address=network.control_address(7).ip,
        relay_address=IPv4Address("127.77.0.7"),
        host_key="ssh-ed25519 AAAA x-7-VM",
        root=root,
    )


def words(vm: VM) -> dict[str, str]:
    return dict(word.split("=", 1) for word in bootline.boot_line(vm, authorized_key=KEY).split())


class TestBootLine:
    def test_a_router_is_told_its_three_nics_and_its_network(self) -> None:
        said = words(machine(SystemVMType.ROUTER))
        assert (said["type"], said["name"]) == ("router", "x-7-VM")
        assert (said["eth0ip"], said["eth1ip"], said["eth2ip"]) == ("10.1.3.1", "169.254.1.7", "198.18.1.7")
        assert (said["guestgw"], said["gateway"], said["eth0mask"]) == ("10.1.3.1", "198.18.0.1", "255.255.255.0")
        assert "redundant_router" not in said

    def test_both_of_a_pair_start_as_backup_with_the_pairs_public_address(self) -> None:
        said = words(machine(SystemVMType.ROUTER, redundant=True))
        assert (said["redundant_router"], said["redundant_state"]) == ("1", "BACKUP")
        assert (said["eth0ip"], said["guestgw"], said["eth2ip"]) == ("10.1.3.7", "10.1.3.1", "198.18.2.3")

    def test_a_vpc_router_learns_all_but_its_control_side_by_push(self) -> None:
        vm = machine(SystemVMType.VPCROUTER)
        assert [key for key in words(vm) if key.endswith("ip")] == ["eth0ip"]
        name, push = bootline.pushes(vm, release_line="", signature="")[0]
        assert name == "ip_associations.json"
        entries = push["ip_address"]
        assert isinstance(entries, list)
        assert [entry["nw_type"] for entry in entries] == ["control", "public", "guest"]

    @pytest.mark.parametrize("kind", [SystemVMType.SECSTORAGE, SystemVMType.CONSOLEPROXY])
    def test_agent_vms_get_no_pushes(self, kind: SystemVMType) -> None:
        assert bootline.pushes(machine(kind), release_line="", signature="") == []
        assert words(machine(kind))["port"] == "8250"


@needs_root
class TestTree:
    def test_an_absolute_link_is_resolved_inside_the_root(self, tmp_path: Path) -> None:
        root, outside = tmp_path / "root", tmp_path / "outside"
        (root / "etc").mkdir(parents=True)
        outside.mkdir()
        (root / "var").symlink_to("/usr/var")
        (root / "srv").symlink_to(f"{outside}")
        (root / "etc/hosts").symlink_to(outside / "hosts")
        tree = Tree(root)
        tree.write("/var/x", "in /usr/var")
        tree.write("/srv/x", "in the root")
        tree.write("/etc/hosts", "a file now")
        tree.write("/etc/../../../escape", "still inside")
        assert (root / "usr/var/x").read_text() == "in /usr/var"
        assert (root / str(outside).lstrip("/") / "x").read_text() == "in the root"
        assert (root / "etc/hosts").read_text() == "a file now"
        assert not (root / "etc/hosts").is_symlink()
        assert (root / "escape").exists()
        assert list(outside.iterdir()) == []

    def test_links_in_a_circle_end_in_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "a").symlink_to("/b")
        (tmp_path / "b").symlink_to("/a")
        with pytest.raises(OSError, match="too many links"):
            Tree(tmp_path).write("/a/x", "")

    def test_a_folder_that_is_there_keeps_its_mode(self, tmp_path: Path) -> None:
        (tmp_path / "root").mkdir(mode=0o700)
        Tree(tmp_path).folder("/root", mode=0o755)
        assert stat.S_IMODE((tmp_path / "root").stat().st_mode) == 0o700


@pytest.fixture(scope="module", params=list(SystemVMType))
def vm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VM:
    root = tmp_path_factory.mktemp("root")
    vm = machine(request.param, root=root)
    (root / "etc/apache2/conf-available").mkdir(parents=True)
    (root / "etc/apache2/conf-enabled").mkdir()
    (root / releases.SECURITY_CONF).symlink_to("../conf-available/security.conf")  # as in Debian's package
    layout.lay_out(root, vm, release="4.20.1", authorized_key=KEY, host_key="private\n")
    return vm


@needs_root
class TestLayOut:
    def test_the_payload_is_unpacked_and_signed(self, vm: VM) -> None:
        archive = (vm.root / "usr/share/cloud/cloud-scripts.tgz").read_bytes()
        assert archive == payloads.build_scripts(releases.old())
        signature = (vm.root / "var/cache/cloud/cloud-scripts-signature").read_text()
        assert signature == payloads.checksum(releases.old(), archive) + "\n"
        edited = {"etc/ssh/sshd_config"} | (
            {"etc/logrotate.d/cloud"} if vm.spec.type in bootline.AGENT_TYPES else set()
        )
        for path, content in releases.old().scripts.items():
            if path not in edited:
                assert (vm.root / path).read_bytes() == content, path
        assert not (vm.root / releases.SECURITY_CONF).is_symlink()
        assert (vm.root / "etc/cloudstack-release").read_text().split()[2] == "4.20.1"

    def test_modes_are_those_of_a_vm_that_has_booted(self, vm: VM) -> None:
        units = vm.root / "etc/systemd/system"
        assert {stat.S_IMODE(path.stat().st_mode) for path in units.glob("cloud*.service")} == {0o644}
        assert stat.S_IMODE((vm.root / "etc/logrotate.d/apache2").stat().st_mode) == 0o644
        assert stat.S_IMODE((vm.root / "opt/cloud/bin/configure.py").stat().st_mode) == 0o755

    def test_sshd_listens_on_the_control_address_and_takes_our_key(self, vm: VM) -> None:
        config = (vm.root / "etc/ssh/sshd_config").read_text()
        assert f"\nListenAddress {vm.control_address}\n" in config
        assert "\nPubkeyAcceptedAlgorithms=+ssh-rsa\n" in config
        assert (vm.root / "root/.ssh/authorized_keys").read_text() == KEY + "\n"
        assert (vm.root / "etc/ssh/ssh_host_ed25519_key").read_text() == "private\n"
        assert stat.S_IMODE((vm.root / "etc/ssh/ssh_host_ed25519_key").stat().st_mode) == 0o600

    def test_the_boot_is_still_to_come(self, vm: VM) -> None:
        cache = vm.root / "var/cache/cloud"
        assert not (cache / "boot_up_done").exists()
        assert json.loads((cache / "cmd_line.json").read_text())["cmd_line"]["name"] == vm.name
        assert (cache / "cmdline").read_text() == bootline.boot_line(vm, authorized_key=KEY)
        wanted = vm.root / "etc/systemd/system/multi-user.target.wants"
        assert {path.name for path in wanted.iterdir()} == {
            "cloud-preinit.service",
            "cloud-early-config.service",
            "cloud-postinit.service",
            "lab-management-push.service",
        }

    def test_only_agent_vms_have_an_agent_and_it_has_lived(self, vm: VM) -> None:
        home = vm.root / "usr/local/cloud/systemvm"
        assert home.exists() is (vm.spec.type in bootline.AGENT_TYPES)
        if home.exists():
            assert len(list(home.glob("*.jar"))) == 222
            assert f"type={vm.spec.type}\n" in (home / "conf/agent.properties").read_text()
            assert stat.S_IMODE((home / "_run.sh").stat().st_mode) == 0o555
            assert (home / "conf/cloud.jks").exists()

    def test_the_web_root_belongs_to_the_web_server_where_one_runs(self, vm: VM) -> None:
        serves = vm.spec.type in {
            SystemVMType.ROUTER,
            SystemVMType.VPCROUTER,
            SystemVMType.DHCPSRVR,
            SystemVMType.SECSTORAGE,
        }
        assert (vm.root / "var/www/html/latest/.htaccess").stat().st_uid == (33 if serves else 0)
