"""A system VM's root as it is after its first start by CloudStack.

The machines know nothing of CloudStack and the payloads know nothing of a particular VM; this is where the two meet.
What CloudStack's management server would send is kept on the VM and sent again at each boot by a unit of the lab's
own, ``lab-management-push``: a real router that loses its data bags at boot gets them back in the same way.
"""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from functools import cache
from pathlib import Path, PurePosixPath

from lab.content import bootline, filler, payloads, releases
from lab.content.bootline import AGENT_TYPES
from lab.content.releases import Release
from lab.content.tree import Tree
from lab.spec import VM, SystemVMType

AGENT_HOME = "/usr/local/cloud/systemvm"
CACHE = "/var/cache/cloud"
INSTALLED_PAYLOAD = "/usr/share/cloud/cloud-scripts.tgz"
SIGNATURE = f"{CACHE}/cloud-scripts-signature"
RELEASE_FILE = "/etc/cloudstack-release"
LAB_SETTINGS = "/etc/default/cloudstack-lab"
CONNTRACKD_SETTINGS = "/etc/systemd/system/conntrackd.service.d/lab-left-lock.conf"
"""The lab's own: without it a conntrackd is as fragile as Debian 12's on a router."""
PUSHES = "/var/lib/lab/pushes"
"""What ``lab-management-push`` sends at each boot; empty, the management server sends nothing."""

_WWW_DATA = 33  # Debian's fixed number
_WEB_TYPES = frozenset({SystemVMType.ROUTER, SystemVMType.VPCROUTER, SystemVMType.DHCPSRVR, SystemVMType.SECSTORAGE})
_BOOT_UNITS = tuple(
    f"{name}.service" for name in ("cloud-preinit", "cloud-early-config", "cloud-postinit", "lab-management-push")
)
_MASKED_UNITS = ("nfs-common.service",)

_SERVICES: dict[SystemVMType, tuple[str, str]] = {
    SystemVMType.SECSTORAGE: ("cloud apache2 nfs-common portmap\n", "conntrackd keepalived haproxy dnsmasq\n"),
    SystemVMType.CONSOLEPROXY: ("cloud\n", "haproxy dnsmasq apache2 nfs-common portmap\n"),
    SystemVMType.DHCPSRVR: ("dnsmasq apache2\n", "cloud nfs-common conntrackd keepalived haproxy portmap\n"),
    SystemVMType.ELBVM: ("haproxy\n", "cloud dnsmasq conntrackd keepalived apache2 nfs-common portmap\n"),
    SystemVMType.ILBVM: ("haproxy\n", "cloud dnsmasq conntrackd keepalived apache2 nfs-common portmap\n"),
}

_NO_LEFT_LOCK = """\
# Some restarts of conntrackd at a boot meet one that is starting. It is killed before it can remove its lock file, and
# with that file no other one starts. On a router it is rare; a lab boots hundreds.
[Service]
ExecStartPre=-/bin/rm -f /run/lock/conntrackd.lock
"""

_PUSH_UNIT = """\
[Unit]
Description=The lab's management server: sends this VM its configuration again after a start
After=cloud-postinit.service
Requires=cloud-postinit.service

[Service]
Type=oneshot
ExecStart=/usr/local/lib/lab/management-push

[Install]
WantedBy=multi-user.target
"""

_PUSH_PROGRAM = """\
#!/bin/bash
# Sends what a management server sends after a start, in its order and as one configuration file, the way it does.
set -u
config=$(mktemp /var/cache/cloud/VR-lab-XXXXXX.cfg)
echo '<version>
1.0
</version>' >"$config"
found=
for push in /var/lib/lab/pushes/*.json; do
  [ -f "$push" ] || continue
  found=1
  name=$(basename "$push")
  name=${name#[0-9][0-9]-}.$(cat /proc/sys/kernel/random/uuid)
  printf '<file>\\n/var/cache/cloud/%s\\n' "$name" >>"$config"
  cat "$push" >>"$config"
  printf '</file>\\n<script>\\n/opt/cloud/bin/update_config.py %s\\n</script>\\n' "$name" >>"$config"
done
[ -n "$found" ] || { rm -f "$config"; exit 0; }
exec /opt/cloud/bin/vr_cfg.sh -c "$config"
"""


def release_line(release: Release) -> str:
    """The line of ``/etc/cloudstack-release``; written with the template, never by a patch."""
    return f"Cloudstack Release {release.version} Tue Apr 15 09:30:00 UTC 2025\n"


def service_lists(vm: VM) -> tuple[str, str]:
    """(enabled_svcs, disabled_svcs) as CloudStack's ``<type>.sh`` writes them at boot."""
    if vm.spec.type in _SERVICES:
        return _SERVICES[vm.spec.type]
    if vm.spec.redundant:
        return "haproxy apache2 frr\nkeepalived\n", "cloud nfs-common portmap\ndnsmasq conntrackd\n"
    return "haproxy apache2 frr\ndnsmasq\n", "cloud nfs-common portmap\nkeepalived conntrackd\n"


@cache
def _scripts_archive(release: Release) -> bytes:
    return payloads.build_scripts(release)


@cache
def _agent_archive(release: Release, scale: float) -> bytes:
    return payloads.build_agent(release, scale=scale)


def lay_out(
    root: Path,
    vm: VM,
    *,
    release: str | Release = "",
    authorized_key: str,
    host_key: str = "",
    agent_scale: float = payloads.DEFAULT_AGENT_SCALE,
) -> None:
    """Write into ``root`` (a mounted, not running Debian) what a VM of ``release`` holds before its next boot.

    ``release`` is a release, its name or its version; empty means ``old``. ``authorized_key`` is one public key line
    for root. ``host_key`` is an OpenSSH private key, which becomes the VM's only one; empty leaves those there are.
    ``agent_scale`` as in :func:`lab.content.payloads.build_agent`. Needs root (owners).
    """
    chosen = release if isinstance(release, Release) else releases.find(release)
    tree = Tree(root)
    archive = _scripts_archive(chosen)
    signature = payloads.checksum(chosen, archive)
    _template(tree, chosen, archive)
    _identity(tree, vm, authorized_key=authorized_key, host_key=host_key)
    _first_start(tree, vm, archive, signature, authorized_key=authorized_key)
    for number, (name, push) in enumerate(bootline.pushes(vm, release_line=release_line(chosen), signature=signature)):
        tree.write(f"{PUSHES}/{number:02d}-{name}", bootline.as_json(push))
    if vm.spec.type in AGENT_TYPES:
        _agent(tree, vm, _agent_archive(chosen, agent_scale), authorized_key=authorized_key)
    if vm.spec.type in _WEB_TYPES:
        tree.give("/var/www", _WWW_DATA)


def _template(tree: Tree, release: Release, archive: bytes) -> None:
    """What the template holds for every type: the unpacked payload, units, and the lab's own few files."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        for member in members:
            if member.isdir():
                tree.folder(member.name, mode=member.mode)
                continue
            content = members.extractfile(member)
            assert content is not None  # the builder writes nothing but folders and files
            mode = member.mode
            if PurePosixPath(member.name).match("etc/systemd/system/cloud*.service"):
                mode &= ~0o111  # bootstrap.sh does so at every boot
            tree.write(member.name, content.read(), mode=mode)
    tree.write(RELEASE_FILE, release_line(release))
    tree.write(LAB_SETTINGS, "# No host sends a payload when a VM of the lab starts.\nPAYLOAD_WAIT_SECONDS=2\n")
    # Tests restart units more often in ten seconds than a person would.
    tree.write("/etc/systemd/system.conf.d/lab.conf", "[Manager]\nDefaultStartLimitBurst=100\n")
    tree.write(CONNTRACKD_SETTINGS, _NO_LEFT_LOCK)
    tree.write("/etc/systemd/system/lab-management-push.service", _PUSH_UNIT)
    tree.write("/usr/local/lib/lab/management-push", _PUSH_PROGRAM, mode=0o755)
    for unit in _BOOT_UNITS:
        tree.link(f"/etc/systemd/system/multi-user.target.wants/{unit}", f"/etc/systemd/system/{unit}")
    for unit in _MASKED_UNITS:
        tree.link(f"/etc/systemd/system/{unit}", "/dev/null")
    tree.link("/usr/bin/python", "python3")
    tree.folder("/etc/cloudstack")
    tree.folder(PUSHES)


def _identity(tree: Tree, vm: VM, *, authorized_key: str, host_key: str) -> None:
    """Keys, and an sshd that listens on the control address only, as ``init.sh`` and ``patch.sh`` leave it."""
    config = tree.read("/etc/ssh/sshd_config").decode("utf-8")
    config = config.replace("#ListenAddress 0.0.0.0", f"ListenAddress {vm.control_address}")
    marker = "PubkeyAuthentication yes\n"
    config = config.replace(marker, f"{marker}PubkeyAcceptedAlgorithms=+ssh-rsa\n")
    tree.write("/etc/ssh/sshd_config", config, mode=0o755)
    tree.folder("/root/.ssh", mode=0o700)
    tree.write("/root/.ssh/authorized_keys", authorized_key.strip() + "\n", mode=0o600)
    if host_key:
        for kind in ("rsa", "ecdsa", "ed25519"):
            tree.remove(f"/etc/ssh/ssh_host_{kind}_key")
            tree.remove(f"/etc/ssh/ssh_host_{kind}_key.pub")
        tree.write("/etc/ssh/ssh_host_ed25519_key", host_key, mode=0o600)


def _first_start(tree: Tree, vm: VM, archive: bytes, signature: str, *, authorized_key: str) -> None:
    """What the first start by CloudStack left behind: boot line, lists, payload, signature, data bags."""
    line = bootline.boot_line(vm, authorized_key=authorized_key)
    enabled, disabled = service_lists(vm)
    tree.write(f"{CACHE}/cmdline", line)
    tree.write(f"{CACHE}/cmd_line.json", bootline.as_json(bootline.cmd_line_json(line)))
    tree.write(f"{CACHE}/enabled_svcs", enabled)
    tree.write(f"{CACHE}/disabled_svcs", disabled)
    tree.write(SIGNATURE, signature + "\n")
    tree.write(INSTALLED_PAYLOAD, archive)
    if vm.spec.type in AGENT_TYPES:
        # Removed at each boot there: the agent rotates its log itself.
        tree.remove("/etc/logrotate.d/cloud")


def _agent(tree: Tree, vm: VM, archive: bytes, *, authorized_key: str) -> None:
    """The agent's tree with what its life added: properties from the boot line, keystore, certificates."""
    with zipfile.ZipFile(io.BytesIO(archive)) as members:
        for info in members.infolist():
            inside = f"{AGENT_HOME}/{info.filename}"
            if info.is_dir():
                tree.folder(inside)
                continue
            mode = 0o555 if info.filename.endswith(".sh") else stat.S_IMODE(info.external_attr >> 16)
            tree.write(inside, members.read(info), mode=mode)
    properties = tree.read(f"{AGENT_HOME}/conf/agent.properties").decode("utf-8")
    words = bootline.boot_line(vm, authorized_key=authorized_key).split()
    dropped = ("instance=", "resource=") if vm.spec.type is SystemVMType.SECSTORAGE else ()
    added = [word for word in words if not word.startswith(dropped)]
    added += [f"guid={vm.name}-guid", "keystore.passphrase=lab-keystore"]
    tree.write(f"{AGENT_HOME}/conf/agent.properties", properties + "".join(f"{word}\n" for word in added), mode=0o644)
    for name in ("cloud.jks", "cloud.key", "cloud.crt", "cloud.ca.crt", "cloud.csr"):
        tree.write(f"{AGENT_HOME}/conf/{name}", filler.incompressible(f"{vm.name} {name}", 1200), mode=0o600)
    # Root certificates are imported into it at boot, so it is never the packaged one.
    tree.write(f"{AGENT_HOME}/certs/realhostip.keystore", filler.incompressible(f"{vm.name} keystore", 9000))
