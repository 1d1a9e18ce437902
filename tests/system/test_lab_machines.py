"""The lab's machines are machines: they boot, keep their disk, lose their power, and leave nothing behind.

Everything that is later said about system VMs rests on this, so it is tested with the least content that boots: an
sshd, a key, and a unit that writes the boot marker.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import Fault, GuestError, Lab, LabError, SystemVMType, VMSpec, paths, preflight
from lab.cgroups import started_at
from lab.spec import BOOT_MARKER, VM, Segment

pytestmark = [
    pytest.mark.systemvm,
    pytest.mark.skipif(preflight.missing() is not None, reason=preflight.missing() or ""),
]

ROUTER = VMSpec(name="r-7-VM", type=SystemVMType.ROUTER, index=7, group="net-1")
NEIGHBOUR = VMSpec(name="r-8-VM", type=SystemVMType.DHCPSRVR, index=8, group="net-1", tmpfs_mib=16)
NAME = ROUTER.name


def lay_out_barely(root: Path, vm: VM, *, release: str, authorized_key: str, host_key: str) -> None:
    """As little as boots and lets us in."""
    (root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
    (root / "root/.ssh/authorized_keys").write_text(f"{authorized_key}\n")
    key = root / "etc/ssh/ssh_host_ed25519_key"
    key.write_text(host_key)
    key.chmod(0o600)
    (root / "etc/ssh/sshd_config.d/lab.conf").write_text(
        f"Port {vm.port}\nHostKey /etc/ssh/ssh_host_ed25519_key\nPermitRootLogin prohibit-password\n"
    )
    (root / "etc/cloudstack-release").write_text(f"Cloudstack Release {release}\n")
    units = root / "etc/systemd/system"
    command = f"mkdir -p {Path(BOOT_MARKER).parent} && date > {BOOT_MARKER}"
    (units / "marker.service").write_text(
        f"[Unit]\nAfter=ssh.service\n[Service]\nType=oneshot\nExecStart=/bin/sh -c '{command}'\n"
    )
    (units / "multi-user.target.wants").mkdir(exist_ok=True)
    (units / "multi-user.target.wants/marker.service").symlink_to("../marker.service")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"), lay_out=lay_out_barely)
    try:
        lab.up([ROUTER], release="4.20.1")
        yield lab
        assert (lab.run_dir / "machines/lab.log").read_text() == "", "toolbox and relay have nothing to complain about"
    finally:
        lab.down()


@pytest.fixture(autouse=True)
def _whole_wires(lab: Lab) -> Iterator[None]:
    yield
    for name in lab.faults():
        lab.fault(name, Fault.HEAL)


def connect(lab: Lab, name: str = NAME) -> socket.socket:
    vm = lab.vm(name)
    return socket.create_connection((str(vm.relay_address), vm.port), timeout=5)


def banner(connection: socket.socket) -> bytes:
    return connection.recv(8)


def test_sshd_answers_on_the_relay_address_and_proves_its_host_key(lab: Lab) -> None:
    with connect(lab) as connection:
        assert banner(connection) == b"SSH-2.0-"
    login = subprocess.run(lab.ssh_command(NAME, ["hostname"]), capture_output=True, text=True, timeout=20, check=False)
    assert (login.returncode, login.stdout, login.stderr) == (0, f"{NAME}\n", "")


def test_a_changed_host_key_is_refused(lab: Lab) -> None:
    command = lab.ssh_command(NAME, ["true"])
    other = lab.vm(NAME).host_key.replace("AAAAI", "AAAAJ", 1)
    known = Path(next(word for word in command if word.startswith("UserKnownHostsFile=")).split("=")[1])
    known.write_text(known.read_text().replace(lab.vm(NAME).host_key, other))
    login = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert login.returncode == 255


def test_exec_tells_output_and_failure(lab: Lab) -> None:
    assert lab.exec(NAME, ["cat", "/etc/cloudstack-release"]).stdout == "Cloudstack Release 4.20.1\n"
    assert lab.exec(NAME, "echo out; echo err >&2; exit 3", check=False).returncode == 3
    with pytest.raises(GuestError, match=r"r-7-VM: .*exit 4: why"):
        lab.exec(NAME, "echo why >&2; exit 4")
    with pytest.raises(GuestError, match=r"not done in 0\.2 s"):
        lab.exec(NAME, "sleep 98765", timeout=0.2)
    assert "98765" not in lab.exec(NAME, ["ps", "ax"]).stdout


def test_nics_come_in_the_order_of_the_type(lab: Lab) -> None:
    vm = lab.vm(NAME)
    assert [(nic.name, nic.segment) for nic in vm.nics] == [
        ("eth0", Segment.GUEST),
        ("eth1", Segment.CONTROL),
        ("eth2", Segment.PUBLIC),
    ]
    links = lab.exec(NAME, ["ip", "-o", "link"]).stdout
    for nic in vm.nics:
        assert any(f": {nic.name}@" in line and nic.mac in line and "state UP" in line for line in links.splitlines())
    assert str(vm.control_address) in lab.exec(NAME, ["ip", "-o", "-4", "addr", "show", "eth1"]).stdout


def test_a_reboot_keeps_the_disk_and_nothing_else(lab: Lab) -> None:
    before = lab.exec(NAME, ["cat", "/proc/sys/kernel/random/boot_id"]).stdout
    lab.exec(NAME, "echo kept > /root/kept; echo gone > /run/gone; ip addr add 192.0.2.1/24 dev eth0")
    lab.exec(NAME, ["nft", "add", "table", "ip", "forgotten"])
    lab.reboot(NAME)
    assert lab.exec(NAME, ["cat", "/proc/sys/kernel/random/boot_id"]).stdout != before
    assert lab.read_bytes(NAME, "/root/kept") == b"kept\n"
    with pytest.raises(FileNotFoundError):
        lab.read_bytes(NAME, "/run/gone")
    assert "192.0.2.1" not in lab.exec(NAME, ["ip", "-o", "addr"]).stdout
    assert lab.exec(NAME, ["nft", "list", "tables"]).stdout == ""
    with connect(lab) as connection:
        assert banner(connection) == b"SSH-2.0-"


def test_a_vm_without_power_answers_nothing_and_comes_back_with_its_disk(lab: Lab) -> None:
    lab.write_bytes(NAME, "/root/deep/er", b"\x00\xff")
    with connect(lab) as open_connection:
        banner(open_connection)
        lab.power_off(NAME)
        assert not lab.is_on(NAME)
        with connect(lab) as connection, contextlib.suppress(ConnectionResetError):
            assert banner(connection) == b""
    with pytest.raises(LabError, match="does not run"):
        lab.reboot(NAME)
    assert lab.read_bytes(NAME, "/root/deep/er") == b"\x00\xff"
    lab.power_on(NAME)
    assert lab.read_bytes(NAME, "/root/deep/er") == b"\x00\xff"
    with pytest.raises(LabError, match="on already"):
        lab.power_on(NAME)


def test_a_vm_can_be_shut_down_in_order(lab: Lab) -> None:
    unit = "[Service]\nExecStart=/bin/sleep inf\nExecStop=/bin/sh -c 'echo bye > /root/bye'\n"
    lab.write_bytes(NAME, "/run/systemd/system/polite.service", unit.encode())
    lab.exec(NAME, "systemctl daemon-reload && systemctl start polite")
    lab.stop(NAME)
    assert lab.read_bytes(NAME, "/root/bye") == b"bye\n"
    lab.power_on(NAME)


def test_a_cut_resets_open_connections_and_carries_new_ones(lab: Lab) -> None:
    with connect(lab) as connection:
        assert banner(connection) == b"SSH-2.0-"
        lab.fault(NAME, Fault.CUT)
        with pytest.raises(ConnectionResetError):
            while connection.recv(4096):
                pass
    with connect(lab) as connection:
        assert banner(connection) == b"SSH-2.0-"


def test_a_silent_wire_accepts_and_says_nothing_until_healed(lab: Lab) -> None:
    with connect(lab) as old:
        banner(old)
        old.sendall(b"SSH-2.0-test\r\n")
        while b"\n" not in old.recv(4096):
            pass
        lab.fault(NAME, Fault.SILENCE)
        with connect(lab) as new:
            new.settimeout(0.5)
            with pytest.raises(TimeoutError):
                banner(new)
            lab.fault(NAME, Fault.HEAL)
            new.settimeout(5)
            with pytest.raises(ConnectionResetError):
                banner(new)
        old.sendall(b"\x00" * 35000)
        with contextlib.suppress(ConnectionResetError):
            assert old.recv(4096), "the open connection went on: sshd had something to say about our nonsense"


def test_a_refusing_wire_refuses_only_new_connections(lab: Lab) -> None:
    with connect(lab) as old:
        lab.fault(NAME, Fault.REFUSE)
        assert banner(old) == b"SSH-2.0-"
        with pytest.raises(ConnectionRefusedError):
            connect(lab)
    lab.fault(NAME, Fault.HEAL)
    with connect(lab) as connection:
        assert banner(connection) == b"SSH-2.0-"


def test_a_reset_by_one_end_reaches_the_other_and_the_relay_stays_calm(lab: Lab) -> None:
    connection = connect(lab)
    banner(connection)
    connection.sendall(b"SSH-2.0-test\r\n")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    end = time.monotonic() + 10
    while "Connection reset by" not in lab.exec(NAME, "journalctl --no-pager -b -u ssh").stdout:
        assert time.monotonic() < end, "sshd did not see the reset"
        time.sleep(0.1)


def test_a_slow_wire_delays_and_loses_nothing(lab: Lab) -> None:
    lab.fault(NAME, Fault.DELAY, delay_seconds=0.3)
    started = time.monotonic()
    with connect(lab) as connection:
        assert banner(connection) == b"SSH-2.0-"
    assert 0.3 <= time.monotonic() - started < 3


def test_the_wire_counts_the_bytes_it_carries(lab: Lab) -> None:
    before = lab.traffic(NAME)
    payload = 300_000
    command = lab.ssh_command(NAME, ["wc", "-c"])
    done = subprocess.run(command, input=os.urandom(payload), capture_output=True, timeout=20, check=True)
    assert int(done.stdout) == payload
    used = lab.traffic(NAME) - before
    assert payload < used.sent_bytes < payload * 1.1
    assert 0 < used.received_bytes < payload / 10
    assert used.connections == 1


def test_a_snapshot_sees_every_kind_of_change(lab: Lab) -> None:
    lab.exec(
        NAME,
        "mkdir -p /opt/t/d && cd /opt/t && echo a > f && ln f g && ln -s /etc/hostname l && chmod 640 f",
    )
    before = lab.snapshot_tree(NAME, ["/opt/t", "/opt/missing"])
    assert set(before) == {"/opt/t", "/opt/t/d", "/opt/t/f", "/opt/t/g", "/opt/t/l"}
    assert (before["/opt/t/f"].nlink, before["/opt/t/f"].mode, before["/opt/t/l"].target) == (2, 0o640, "/etc/hostname")
    lab.exec(NAME, ["touch", "/opt/t/f"])
    assert lab.snapshot_tree(NAME, ["/opt/t"]) == before
    changes = (
        ("/opt/t/f", "echo b > /opt/t/f"),
        ("/opt/t/f", "chmod 641 /opt/t/f"),
        ("/opt/t/d", "chown 1:1 /opt/t/d"),
        ("/opt/t/l", "ln -sfn /etc/hosts /opt/t/l"),
        ("/opt/t/g", "rm /opt/t/g"),
        ("/opt/t/d", 'python3 -c \'import os; os.setxattr("/opt/t/d", "user.x", b"1")\''),
    )
    for path, change in changes:
        lab.exec(NAME, change)
        after = lab.snapshot_tree(NAME, ["/opt/t"])
        assert after.get(path) != before.get(path), change
        before = after


def test_a_path_in_a_vm_never_leads_to_the_host(lab: Lab, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    lab.exec(NAME, ["ln", "-sfn", str(secret), "/root/link"])
    with pytest.raises(FileNotFoundError):
        lab.read_bytes(NAME, "/root/link")
    lab.exec(NAME, ["mkdir", "-p", str(tmp_path)])
    lab.write_bytes(NAME, "/root/link", b"of the VM")
    assert secret.read_text() == "of the host"


def test_folders_of_the_image_can_be_exchanged_as_on_a_real_disk(lab: Lab) -> None:
    exchange = (
        "import ctypes, os; os.mkdir('/etc/new'); libc = ctypes.CDLL(None, use_errno=True); "
        "r = libc.renameat2(-100, b'/etc/new', -100, b'/etc/apache2', 2); "
        "assert r == 0, os.strerror(ctypes.get_errno()); "
        "assert os.listdir('/etc/apache2') == [] and 'apache2.conf' in os.listdir('/etc/new')"
    )
    lab.exec(NAME, ["python3", "-c", exchange])
    lab.exec(NAME, "rmdir /etc/apache2 && mv /etc/new /etc/apache2")


def test_vms_of_a_group_share_a_guest_network_and_a_small_disk_gets_full(lab: Lab) -> None:
    lab.add(NEIGHBOUR)
    try:
        with pytest.raises(LabError, match="taken"):
            lab.add(NEIGHBOUR)
        here, there = lab.vm(NAME).nic(Segment.GUEST), lab.vm(NEIGHBOUR.name).nic(Segment.GUEST)
        assert here.bridge == there.bridge
        lab.exec(NAME, ["ip", "addr", "add", str(here.address), "dev", here.name])
        lab.exec(NEIGHBOUR.name, ["ip", "addr", "add", str(there.address), "dev", there.name])
        assert there.address is not None
        lab.exec(NAME, ["ping", "-c1", "-W2", str(there.address.ip)])
        full = lab.exec(NEIGHBOUR.name, "head -c 32M /dev/zero > /root/big", check=False)
        assert "No space left" in full.stderr
    finally:
        lab.remove(NEIGHBOUR.name)
    assert [vm.name for vm in lab.vms()] == [NAME]
    with pytest.raises(LabError, match="no VM 'r-8-VM'"):
        lab.exec(NEIGHBOUR.name, "true")


def test_a_lab_that_is_up_is_not_brought_up_again(lab: Lab) -> None:
    with pytest.raises(LabError, match="is up"):
        Lab(lab.run_dir, lay_out=lay_out_barely).up([ROUTER])
    assert lab.is_on(NAME)


# -- leaving nothing -------------------------------------------------------------------------------------------------


def processes_of(lab: Lab) -> list[str]:
    """What runs for a lab, by command line, cgroup and namespace: more ways than `down` itself has."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if (
                started_at(int(folder.name)) is not None
                and folder.name != str(os.getpid())
                and (
                    str(lab.run_dir) in command
                    or lab.id in (folder / "cgroup").read_text()
                    or str(lab.run_dir) in (folder / "mountinfo").read_text()
                )
            ):
                found.append(f"{folder.name} {command}")
    return found


def traces(lab: Lab) -> dict[str, object]:
    """Everything a lab could leave on this machine."""
    return {
        "processes": processes_of(lab),
        "mounts": [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(lab.run_dir) in line],
        "links": sorted(os.listdir("/sys/class/net")),
        "netns": sorted(os.listdir("/run/netns")) if Path("/run/netns").is_dir() else [],
        "cgroups": sorted(str(path) for path in Path("/sys/fs/cgroup").glob(f"*/*{lab.id}*")),
        "folder": lab.run_dir.exists(),
        "partial": sorted(str(path) for path in (paths.cache_dir() / "roots").glob("*.partial")),
    }


@pytest.fixture
def another(tmp_path: Path) -> Iterator[Lab]:
    """A lab of its own, and a folder that is gone when it is down."""
    lab = Lab(tmp_path / "another", lay_out=lay_out_barely)
    yield lab
    lab.down()


def test_down_leaves_nothing(another: Lab) -> None:
    before = traces(another)
    another.up([ROUTER, NEIGHBOUR])
    during = traces(another)
    assert during["processes"] and during["cgroups"] and during["folder"]
    assert (during["mounts"], during["links"], during["netns"]) == (before["mounts"], before["links"], before["netns"])
    vm = another.vm(NAME)
    removed = another.down()
    assert traces(another) == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((str(vm.relay_address), vm.port), timeout=5)
    assert any("2 VMs (r-7-VM, r-8-VM)" in line for line in removed)
    assert another.down() == []


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {paths!r}
from lab import Lab
from lab.machines import Lab as machines
from tests.system.test_lab_machines import ROUTER, NEIGHBOUR, lay_out_barely
steps = 0
def maybe_die(*_):
    global steps
    steps += 1
    if steps == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
def traced(frame, event, _):
    if event == "call" and frame.f_code.co_filename.endswith(("/lab/toolbox.py", "/lab/cgroups.py", "/lab/state.py")):
        maybe_die()
sys.setprofile(traced)
import threading; threading.setprofile(traced)
Lab(Path({run_dir!r}), lay_out=lay_out_barely).up([ROUTER, NEIGHBOUR])
"""


def killed_up(lab: Lab, step: int) -> int:
    """`up` in a process that kills itself at its `step`-th call into the lab's inner parts. Returns its exit code."""
    root = Path(__file__).resolve().parents[2]
    program = KILLED.format(paths=[str(root / "hack"), str(root)], step=step, run_dir=str(lab.run_dir))
    return subprocess.run([sys.executable, "-c", program], check=False, timeout=120, cwd=root).returncode


@pytest.mark.parametrize("step", [3, 8, 14, 20, 28, 45, 70, 100])
def test_an_up_that_is_killed_leaves_nothing_that_down_does_not_find(another: Lab, step: int) -> None:
    before = traces(another)
    assert killed_up(another, step) == -signal.SIGKILL
    another.down()
    assert traces(another) == before


def test_an_up_after_a_killed_one_starts_afresh(another: Lab) -> None:
    assert killed_up(another, 60) == -signal.SIGKILL
    another.up([ROUTER])
    assert another.exec(NAME, "echo ok").stdout == "ok\n"
