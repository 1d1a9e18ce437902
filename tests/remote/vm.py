"""A system VM that is only a folder, with a systemd that is only a few files.

The program runs against it with `--root`. Everything is laid out as on a real router as far as the program looks at it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import tempfile
import time
from pathlib import Path

from tests.remote import configure, dpkg, systemd

from sysvm.patching.remote import files, worker
from sysvm.patching.remote.host import Host, Outcome
from sysvm.patching.remote.serve import Session
from sysvm.patching.remote.store import Store

OLD_TGZ = b"the old payload"
NEW_TGZ = b"the new payload"
OLD_SIGNATURE = hashlib.md5(OLD_TGZ).hexdigest()
NEW_SIGNATURE = hashlib.md5(NEW_TGZ).hexdigest()
SIGNATURE = "var/cache/cloud/cloud-scripts-signature"
TGZ = "usr/share/cloud/cloud-scripts.tgz"
UNITS = ("haproxy", "cloud", "dnsmasq")

OLD_TREE = {
    "bin/configure.py": b"import old\n",
    "bin/cs/CsHelper.py": b"old helper\n",
    "bin/checkrouter.sh": b"#!/bin/sh\necho Status: PRIMARY\n",
    "bin/gone.py": b"the new payload lacks this\n",
    "bin/old_module/__init__.py": b"",
    "bin/__pycache__/configure.cpython-39.pyc": b"bytecode",
    "templates/keepalived.conf.templ": b"unchanged\n",
    "templates/twin": b"one file, two names\n",
    "conf/agent.properties": b"written by the VM\n",
}
NEW_TREE = {
    "bin/configure.py": b"import new\n",
    "bin/cs/CsHelper.py": b"new helper\n",
    "bin/checkrouter.sh": OLD_TREE["bin/checkrouter.sh"],
    "bin/cs/CsAdded.py": b"new helper\n",
    "bin/fresh/module.py": b"in a new folder\n",
    "templates/keepalived.conf.templ": b"unchanged\n",
}
OLD_FILES = {
    "etc/haproxy/haproxy.cfg": b"good old\n",
    "etc/cron.daily/clear_cache": b"#!/bin/sh\nold\n",
    "root/func.sh": b"old functions\n",
    "etc/logrotate.d/removed": b"the new payload lacks this\n",
    "usr/lib/systemd/system/cloud.service": b"[Service]\nold\n",
}
NEW_FILES = {
    "etc/haproxy/haproxy.cfg": b"good new\n",
    "etc/cron.daily/clear_cache": b"#!/bin/sh\nnew\n",
    "root/func.sh": b"old functions\n",
    "lib/systemd/system/cloud.service": b"[Service]\nnew\n",
    "etc/frr/added/frr.conf": b"in a folder that was missing\n",
}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write(path: Path, content: bytes, mode: int = 0o644, age: float = 3600.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
    then = int((time.time() - age) * 1e9) + 123_456_789
    os.utime(path, ns=(then, then))


class FakeHost(Host):
    """The machine with a systemd made of files; a service action is a change that a fault can hit."""

    def __init__(self, root: str) -> None:
        super().__init__(root)

    def run(self, argv: list[str], timeout: float, folder: str = "/", merged: bool = True) -> Outcome:
        if argv[0] == "systemctl":
            acts = argv[1] not in ("show", "reset-failed")
            if acts:
                files.FAULTS.before("systemctl")
            code, output = systemd.systemctl(self.root, argv[1:])
            if acts:
                files.FAULTS.after()
            return Outcome(argv, code, output)
        if argv[0] == "nft":
            files.FAULTS.before("nft")
            state = Path(self.root) / ".systemd/nft"
            there = state.exists()
            if argv[1].startswith("flush"):
                return Outcome(argv, 0 if there else 1, "")
            if argv[1].startswith("add"):
                state.write_text(argv[1])
            else:
                state.unlink(missing_ok=True)
                configure.push_waiting(Path(self.root))
            files.FAULTS.after()
            return Outcome(argv, 0 if there or argv[1].startswith("add") else 1, "")
        if argv[0] == "env" and argv[2].startswith("dpkg"):
            return dpkg.run(self, argv, timeout, super().run)
        if argv[0].endswith("/configure.py"):
            return Outcome(argv, *configure.run(Path(self.root), Path(argv[0]), argv[1]))
        if argv[0] == "journalctl":
            return Outcome(argv, 0, f"last words of {argv[-1]}")
        if argv[0] == "validate":
            text = (Path(self.root) / "etc/haproxy/haproxy.cfg").read_text()
            return Outcome(argv, 1 if "invalid" in text else 0, "haproxy.cfg:1: unknown keyword")
        return super().run(argv, timeout, folder, merged)

    def filters_packets(self):
        return True


class ListWire:
    """A wire whose byte frames lie ready and whose answers are kept."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.sent: list[dict] = []

    def receive_bytes(self) -> bytes:
        return self.frames.pop(0)

    def send(self, message: dict) -> None:
        self.sent.append(message)


class VM:
    """One scratch VM. `template` keeps a copy that `reset` goes back to (same path: plans hold absolute paths)."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.root = base / "vm"

    # ------------------------------------------------------------------------------------ laying out

    def lay_out(self) -> VM:
        root = self.root
        root.mkdir(mode=0o755)
        (root / "usr/lib/systemd/system").mkdir(parents=True)
        (root / "lib").symlink_to("usr/lib")
        write(root / "var/cache/cloud/cmdline", b"template=domP name=r-4-VM type=router eth0ip=10.1.1.1\n")
        write(root / "var/cache/cloud/boot_up_done", b"")
        write(root / "var/cache/cloud/enabled_svcs", b"haproxy apache2\ndnsmasq\n")
        write(root / SIGNATURE, OLD_SIGNATURE.encode() + b"\n", 0o640, 7200)
        write(root / TGZ, OLD_TGZ, 0o644, 7200)
        write(root / "etc/cloudstack-release", b"Cloudstack Release 4.20.1 Tue Apr 15 10:00:00 UTC 2025\n")
        write(root / "etc/debian_version", b"12.5\n")
        for name, content in OLD_TREE.items():
            write(root / "opt/cloud" / name, content, 0o755 if name.endswith((".py", ".sh")) else 0o640)
        os.link(root / "opt/cloud/templates/twin", root / "opt/cloud/templates/twin2")
        (root / "opt/cloud/bin/current").symlink_to("configure.py")
        for name, content in OLD_FILES.items():
            write(root / name, content, 0o755 if "cron" in name else 0o644)
        (root / "root/health_checks").mkdir()
        (root / "tmp").mkdir(mode=0o1777)
        write(root / "proc/meminfo", b"MemTotal: 500000 kB\nMemAvailable: 300000 kB\n")
        write(root / "proc/uptime", b"5000.00 4000.00\n")
        write(root / "proc/sys/kernel/random/boot_id", b"0c1a-boot\n")
        (root / "etc/systemd/system/sysinit.target.wants").mkdir(parents=True)
        (root / "var/lib").mkdir()
        for path in (root / "opt/cloud/bin/configure.py", root / "etc/haproxy/haproxy.cfg"):
            try:
                os.setxattr(path, "user.note", b"kept")
            except OSError:
                pass
        for folder in ("opt/cloud/bin", "opt/cloud", "etc/haproxy", "etc/logrotate.d", "root", "etc/cron.daily"):
            os.utime(root / folder, ns=(10**18 + 7, 10**18 + 7))
        for unit in UNITS:
            systemd.install(str(root), unit, active=unit != "dnsmasq")
        systemd.needs(str(root), "haproxy", "etc/haproxy/haproxy.cfg")
        return self

    def keep(self) -> None:
        subprocess.run(["cp", "-a", self.root, self.base / "template"], check=True)

    def reset(self) -> None:
        shutil.rmtree(self.root)
        subprocess.run(["cp", "-a", self.base / "template", self.root], check=True)

    # ------------------------------------------------------------------------------------ acting

    def host(self) -> FakeHost:
        return FakeHost(str(self.root))

    def store(self) -> Store:
        return Store(self.host())

    def session(self) -> Session:
        host = self.host()
        return Session(ListWire(), host, Store(host), b"program", "d" * 64)

    def prepare(self, order: dict) -> None:
        """begin, stage, build in one session, as an operator does."""
        session = self.session()
        try:
            begun = session.do_begin(1, {"order": order})
            assert begun["state"] == "staging"
            send(session, begun["missing"])
            session.do_build(3, {})
        finally:
            session.let_go()

    def run(self, name: str) -> dict:
        """The detached process, in this one."""
        host = self.host()
        worker.run(host, Store(host), name)
        return self.report(name)

    def recover(self) -> None:
        host = self.host()
        worker.recover_at_boot(host, Store(host))

    def report(self, name: str) -> dict:
        report = self.store().report(self.store().operation(name))
        assert report is not None
        return report

    # ------------------------------------------------------------------------------------ looking

    def signature(self) -> str:
        return (self.root / SIGNATURE).read_text().strip()

    def systemd(self) -> dict[str, str]:
        return {unit: systemd.load(str(self.root), unit)["active"] for unit in UNITS}

    def state(self, *, folder_times: bool = False) -> dict[str, tuple]:
        """Everything that a person would call the VM's files: byte for byte, with owner, mode, times, links, xattrs."""
        found: dict[str, tuple] = {}
        names: dict[int, list[str]] = {}
        for folder, folders, filenames in os.walk(self.root):
            inside = os.path.relpath(folder, self.root)
            folders[:] = [
                n for n in folders if os.path.join(inside, n) not in ("./proc", "./.systemd", "var/lib/sysvm")
            ]
            for name in [*folders, *filenames]:
                path = os.path.join(folder, name)
                key = os.path.relpath(path, self.root)
                facts = os.lstat(path)
                row: tuple = (stat.S_IFMT(facts.st_mode), stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid)
                if stat.S_ISREG(facts.st_mode):
                    with open(path, "rb") as file:
                        row += (file.read(), facts.st_mtime_ns)
                    names.setdefault(facts.st_ino, []).append(key)
                elif stat.S_ISLNK(facts.st_mode):
                    row += (os.readlink(path),)
                elif folder_times and not key.startswith(("var/", "tmp", "etc/systemd/system")):
                    row += (facts.st_mtime_ns,)
                if not stat.S_ISLNK(facts.st_mode):
                    row += tuple((n, os.getxattr(path, n)) for n in sorted(os.listxattr(path)) if n.startswith("user."))
                found[key] = row
        found["(names of one file)"] = tuple(sorted(tuple(sorted(group)) for group in names.values() if len(group) > 1))
        return found

    def texts(self) -> dict[str, tuple]:
        """Content and modes without times and without what the program keeps: to compare with what was ordered."""
        rows = {}
        for key, row in self.state().items():
            own = ".sysvm-" in key or "sysvm-recover" in key
            if not own and key != "(names of one file)" and "__pycache__" not in key:
                rows[key] = row[:5] if row[0] == stat.S_IFREG else row
        return rows


def send(session: Session, wanted: list[str]) -> dict:
    items = []
    for digest in wanted:
        body = BODIES[digest]
        items.append({"sha256": digest, "size": len(body), "encoding": "identity", "wire_size": len(body)})
        session.wire.frames += [body] if body else []
    return session.do_stage(2, {"items": items})


BODIES: dict[str, bytes] = {sha256(NEW_TGZ): NEW_TGZ}
"""Every content that some order here speaks of."""


def entry(path: str, content: bytes, mode: int = 0o755, **more: object) -> dict:
    BODIES[sha256(content)] = content
    return {
        "path": path,
        "sha256": sha256(content),
        "size": len(content),
        "link": None,
        "mode": mode,
        "uid": os.getuid(),
        "gid": os.getgid(),
        "keep_mode": True,
        "keep_owner": True,
        "executable": None,
        **more,
    }


def service(unit: str, action: str, **more: object) -> dict:
    return {"unit": unit, "action": action, "validators": [], "serving": [], "timeout_seconds": 10, **more}


def make_order(name: str = "op-1", **more: object) -> dict:
    """The order that brings the VM from OLD to NEW."""
    return {
        "id": name,
        "epoch": 3,
        "revision": "r" * 64,
        "vm_type": "router",
        "trees": [
            {
                "path": "/opt/cloud",
                "files": [entry(path, content) for path, content in NEW_TREE.items()],
                "folders": [{"path": "bin/fresh", "mode": 0o755, "uid": os.getuid(), "gid": os.getgid()}],
                "remove": ["bin/gone.py", "bin/old_module"],
                "runtime": ["conf/*"],
            }
        ],
        "files": [entry("/" + path, content) for path, content in NEW_FILES.items()],
        "folders": [
            {"path": "/etc/frr", "mode": 0o755, "uid": os.getuid(), "gid": os.getgid()},
            {"path": "/etc/frr/added", "mode": 0o750, "uid": os.getuid(), "gid": os.getgid()},
        ],
        "remove": ["/etc/logrotate.d/removed"],
        "payload": {"path": "/" + TGZ, "sha256": sha256(NEW_TGZ), "size": len(NEW_TGZ)},
        "signature": NEW_SIGNATURE,
        "daemon_reload": True,
        "services": [
            service("haproxy", "reload", validators=[{"argv": ["validate"], "timeout_seconds": 5}]),
            service("cloud", "stop-start"),
            service("dnsmasq", "restart"),
        ],
        "run_checks": False,
        "ignored_checks": [],
        "settle_seconds": 0,
        "step_timeout_seconds": 30,
        "timeout_seconds": 60,
        "keep_backups": 1,
        "reserve_bytes": 1 << 20,
        "reserve_inodes": 10,
        "min_memory_bytes": 96 << 20,
        **more,
    }


def with_file(order: dict, path: str, content: bytes) -> dict:
    """The same order with other content at `path` (absolute)."""
    kept = [one for one in order["files"] if one["path"] != path]
    return {**order, "files": [*kept, entry(path, content)]}


def scratch_folder() -> Path:
    """In memory where that is possible: thousands of syncs cost nothing there."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="sysvm-test-", dir=memory if os.access(memory, os.W_OK) else None))


def in_child(work) -> int:
    """Run `work` in a process of its own that a fault may kill. Returns its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def dump(value: object) -> str:
    return json.dumps(value, indent=1, sort_keys=True)
