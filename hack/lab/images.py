"""Package roots made once: the toolbox that runs the lab and the disk that every VM starts from.

A user's machine keeps its own packages, so what the lab needs lives in roots of its own, made by mmdebstrap. Making
one takes a minute, so it is kept, under a name that is a digest of its recipe: a changed recipe never meets an old
root, and an interrupted build is a folder that nobody looks at.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from lab.preflight import LabUnavailable

Progress = Callable[[str], None]

_BUILD_SECONDS = 1200
_FETCH_SECONDS = 120
_PARTIAL = ".partial"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a root is made of. `customize` is a shell program that runs on the host with the root's path as `$1`."""

    name: str
    suite: str
    packages: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    customize: str = ""

    def digest(self) -> str:
        """Sixteen hex digits that name a root made by this recipe."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


TOOLBOX = Recipe(
    name="toolbox",
    suite="bookworm",
    packages=(
        "systemd-container",
        "iproute2",
        "nftables",
        "iptables",
        "openssh-client",
        "openssh-server",
        "procps",
        "python3-minimal",
        "util-linux",
        "mount",
    ),
    exclude=("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*"),
)

_VM_CUSTOMIZE = r"""
set -eu
root=$1
rm -f "$root"/etc/ssh/ssh_host_*
: > "$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id"
rm -f "$root/etc/resolv.conf"; echo 'nameserver 127.0.0.1' > "$root/etc/resolv.conf"
chroot "$root" systemctl --quiet enable ssh.service
chroot "$root" systemctl --quiet disable apache2 haproxy dnsmasq keepalived conntrackd nftables rsyslog 2>/dev/null
# No console, clock, disk or kernel of its own: these would only wait, wake all VMs at once, or show the host's.
chroot "$root" systemctl --quiet mask getty.target console-getty.service systemd-networkd.service \
    systemd-timesyncd.service systemd-resolved.service apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer \
    e2scrub_reap.service fstrim.timer dpkg-db-backup.timer systemd-update-utmp.service \
    systemd-journal-flush.service systemd-udevd.service systemd-udev-trigger.service \
    sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount
"""

SYSTEM_VM = Recipe(
    name="systemvm",
    suite="bookworm",
    packages=(
        "systemd",
        "systemd-sysv",
        "dbus",
        "libpam-systemd",
        "openssh-server",
        "openssh-client",
        "dnsmasq",
        "haproxy",
        "apache2",
        "keepalived",
        "conntrack",
        "conntrackd",
        "iproute2",
        "nftables",
        "iptables",
        "ipset",
        "ethtool",
        "arping",
        "python3",
        "ca-certificates",
        "openssl",
        "curl",
        "unzip",
        "iputils-ping",
        "procps",
        "psmisc",
        "rsyslog",
        "logrotate",
        "cron",
        "bsdextrautils",
        "dnsutils",
        "netcat-openbsd",
    ),
    exclude=("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*"),
    customize=_VM_CUSTOMIZE,
)


class Images:
    """The roots below one cache folder. Several labs may share it: a file lock lets one of them build."""

    def __init__(self, cache: Path, *, say: Progress, enter: tuple[str, ...] = ()) -> None:
        """`enter` is put before the command of a build (it joins the lab's cgroup, so that `down` finds the build)."""
        self._folder = cache / "roots"
        self._mmdebstrap_folder = cache / "mmdebstrap"
        self._say = say
        self._enter = enter

    def path(self, recipe: Recipe) -> Path:
        """Where the root of a recipe is, or would be."""
        return self._folder / f"{recipe.name}-{recipe.digest()}"

    def ready(self, recipe: Recipe) -> bool:
        return self.path(recipe).is_dir()

    def get(self, recipe: Recipe) -> Path:
        """The root, made now if it is not there. Raises LabUnavailable when it cannot be made."""
        target = self.path(recipe)
        if target.is_dir():
            return target
        with self._lock() as lock:
            assert lock is not None
            if not target.is_dir():
                self._sweep()
                self._build(recipe, target, lock)
        return target

    def _build(self, recipe: Recipe, target: Path, lock: int) -> None:
        mmdebstrap, environment = self._mmdebstrap()
        started = time.monotonic()
        self._say(f"making the {recipe.name} root with mmdebstrap (about a minute, once)")
        partial = target.with_name(target.name + _PARTIAL)
        scratch = target.with_name(target.name + "-tmp" + _PARTIAL)
        scratch.mkdir()
        hook = scratch / "customize"
        hook.write_text(f"#!/bin/sh\n{recipe.customize}")
        hook.chmod(0o755)
        command = [
            *self._enter,
            # A mount namespace of its own, so that a build cut short leaves no mount on the host.
            *("unshare", "--mount", "--propagation", "private", "--"),
            *(mmdebstrap, "--quiet", "--mode=root", "--variant=minbase"),
            f"--include={','.join(recipe.packages)}",
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in recipe.exclude),
            f'--customize-hook={hook} "$1"',
            *(recipe.suite, str(partial)),
        ]
        with (self._folder / f"{recipe.name}.log").open("wb") as log:
            try:
                done = subprocess.run(
                    command,
                    check=False,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment | {"TMPDIR": str(scratch)},
                    timeout=_BUILD_SECONDS,
                    # A build outlives a killed lab; as long as it runs, nobody else may sweep or build here.
                    pass_fds=(lock,),
                )
            except subprocess.TimeoutExpired:
                raise LabUnavailable(
                    f"mmdebstrap did not finish the {recipe.name} root in {_BUILD_SECONDS} s; see {log.name}."
                ) from None
        if done.returncode != 0:
            tail = " / ".join(Path(log.name).read_text(errors="replace").split("\n")[-4:]).strip(" /")
            raise LabUnavailable(
                f"mmdebstrap could not make the {recipe.name} root (is the Debian mirror reachable?), "
                f"see {log.name}, which ends: {tail}"
            )
        partial.rename(target)
        _delete(scratch)
        self._say(f"the {recipe.name} root is made ({time.monotonic() - started:.0f} s)")

    def _mmdebstrap(self) -> tuple[str, dict[str, str]]:
        """The program and the environment it runs in. Fetched into the cache, not installed, where it is missing."""
        environment = dict(os.environ)
        on_path = shutil.which("mmdebstrap")
        if on_path is not None:
            return on_path, environment
        program = self._mmdebstrap_folder / "usr" / "bin" / "mmdebstrap"
        if not program.is_file():
            self._fetch_mmdebstrap()
        return str(program), environment

    def _fetch_mmdebstrap(self) -> None:
        self._say(
            "mmdebstrap is not installed: fetching its package into the cache (nothing is installed on this machine)"
        )
        partial = self._mmdebstrap_folder.with_name(self._mmdebstrap_folder.name + _PARTIAL)
        _delete(partial)
        (partial / "lists" / "partial").mkdir(parents=True)
        # Package lists of its own: the machine's may be empty or old, and refreshing them is not ours to do.
        own = ["-q", "-o", f"Dir::State::Lists={partial}/lists", "-o", f"Dir::Cache={partial}"]
        try:
            for command in (["apt-get", *own, "update"], ["apt-get", *own, "download", "mmdebstrap"]):
                subprocess.run(command, check=True, cwd=partial, capture_output=True, text=True, timeout=_FETCH_SECONDS)
            package = next(partial.glob("mmdebstrap_*.deb"))
            unpack = ["dpkg-deb", "--extract", str(package), str(partial / "unpacked")]
            subprocess.run(unpack, check=True, capture_output=True, timeout=_FETCH_SECONDS)
        except (subprocess.SubprocessError, StopIteration, OSError) as problem:
            raise LabUnavailable(
                f"mmdebstrap is missing and its package could not be fetched ({problem}): install mmdebstrap."
            ) from problem
        (partial / "unpacked").rename(self._mmdebstrap_folder)
        _delete(partial)

    def sweep(self) -> None:
        """Removes what interrupted builds left, unless a build is running now."""
        if not self._folder.is_dir():
            return
        with self._lock(wait=False) as lock:
            if lock is not None:
                self._sweep()

    def _sweep(self) -> None:
        for leftover in self._folder.glob(f"*{_PARTIAL}"):
            _delete(leftover)

    @contextlib.contextmanager
    def _lock(self, *, wait: bool = True) -> Iterator[int | None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    yield None
                    return
                self._say("another lab is making a root in this cache: waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield lock.fileno()


def _delete(folder: Path) -> None:
    """Removes a root, and nothing that something else may have mounted below it."""
    if folder.exists():
        subprocess.run(["rm", "-rf", "--one-file-system", "--", folder], check=True, timeout=_BUILD_SECONDS)
