"""configure.py of a scratch VM: writes bags in place, where a fault may leave half of one, or runs wild."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from tests.remote import systemd

from sysvm.patching.remote import files

BAGS: dict[str, dict] = {
    "cmdline": {"id": "cmdline", "config": {"type": "router", "name": "r-4-VM"}},
    "ips": {"id": "ips", "eth0": [{"public_ip": "10.1.1.1"}], "eth2": [{"public_ip": "192.0.2.4"}]},
    "loadbalancer": {"id": "loadbalancer", "config": [{"configuration": ["listen web"]}]},
    "vmpassword": {"id": "vmpassword", "10.1.1.5": "secret-of-a-tenant"},
}
GENERATED = "etc/dnsmasq.d/cloud.conf"
BAG = {
    "name": "load_balancer.json",
    "bag": "loadbalancer",
    "generated": ["/" + GENERATED],
    "unit": "haproxy",
    "verb": "reload",
    "timeout_seconds": 5,
}


def lay_out(root: Path) -> None:
    """The bags of a router, and what was made of them, an hour old."""
    texts = {root / f"etc/cloudstack/{name}.json": json.dumps(content) for name, content in BAGS.items()}
    for path, text in {**texts, root / GENERATED: "made by the old modules\n"}.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o640)
        then = int((time.time() - 3600) * 1e9)
        os.utime(path, ns=(then, then))


Result = tuple["int | None", str]


def load(path: Path) -> dict:
    """What it cannot read is empty."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {"id": path.stem}


def save(path: Path, bag: dict) -> None:
    """Truncated in place; a kill between the two finds half of it."""
    text = json.dumps(bag)
    files.FAULTS.before("bag")
    with path.open("w") as file:
        file.write(text[: len(text) // 2])
        file.flush()
        files.FAULTS.after()
        files.FAULTS.before("bag")
        file.write(text[len(text) // 2 :])
    files.FAULTS.after()


def run(root: Path, program: Path, argument: str) -> Result:
    """(exit code, output); None: it did not end in time."""
    folder = root / "etc/cloudstack"
    said = program.read_text().strip()
    note = root / ".systemd/configure.json"
    times = json.loads(note.read_text())["times"] if note.exists() else 0
    held = (root / ".systemd/nft").exists()
    note.write_text(json.dumps({"argument": argument, "held": held, "times": times + 1}))
    if said.startswith("wild: "):
        return wild(folder, said.removeprefix("wild: "))
    made = root / "etc/dnsmasq.d/cloud.conf"
    made.write_text("made by: " + said + "\n")
    for name in ("cmdline", "loadbalancer"):
        save(folder / f"{name}.json", {**load(folder / f"{name}.json"), "applied": said})
    broken = root / ".systemd/break-after-configure"
    if broken.exists():
        unit = broken.read_text()
        systemd.save(str(root), unit, {**systemd.load(str(root), unit), "active": "failed", "pid": 0})
    return 0, ""


def push_waiting(root: Path) -> None:
    """The fence is open again: a push of the management server that waited comes in."""
    waiting = root / ".systemd/push-after-configure"
    if waiting.exists() and (root / ".systemd/configure.json").exists():
        (root / "etc/cloudstack/vmpassword.json").write_bytes(waiting.read_bytes())
        waiting.unlink()


def wild(folder: Path, how: str) -> Result:
    if how == "exception":
        return 1, "Traceback (most recent call last)"
    save(folder / "cmdline.json", {**load(folder / "cmdline.json"), "applied": how})
    if how == "lose a key":
        save(folder / "vmpassword.json", {"id": "vmpassword"})
    elif how == "lose an entry":
        save(folder / "ips.json", {"id": "ips", "eth0": [{"public_ip": "10.1.1.1"}]})
    elif how == "remove a bag":
        (folder / "vmpassword.json").unlink()
    elif how in ("half a bag", "never ends"):
        (folder / "loadbalancer.json").write_text('{"id": "loadb')
    return (None, "") if how == "never ends" else (0, "")
