"""Who else works on this VM (R4, R8, R29): CloudStack's own live patch, its commands, and what they left lying."""

import os
import re
import time

from . import files

STAGED = (
    "/var/cache/cloud/cloud-scripts.tgz",
    "/var/cache/cloud/agent.zip",
    "/var/cache/cloud/patch-sysvms.sh",
    "/var/cache/cloud/bkpup_live_patch",
)
"""CloudStack 4.21 patch-sysvms.sh: where it is staged and what it saves."""
STALE_SECONDS = 1800
PATCHING = re.compile(r"^patch-sysvms\.sh$")
COMMANDS = re.compile(r"^(configure\.py|update_config\.py|vr_cfg\.sh|configure_router\.py|keystore-[a-z-]+)$")
"""Short-lived commands of the management server that read the scripts while we exchange them."""


def actors(host, now=None):
    """Every sign of another actor, as protocol.py's `Actor`."""
    now = time.time() if now is None else now
    found = []
    for path in STAGED:
        real = host.at(path)
        try:
            age = max(0.0, now - os.lstat(real).st_mtime)
        except OSError:
            continue
        found.append({"kind": "file", "what": path, "age_seconds": round(age, 1), "blocking": age < STALE_SECONDS})
    for argv, age in processes(host, now):
        names = [os.path.basename(word) for word in argv[:3]]
        patching = any(PATCHING.match(name) for name in names)
        if patching or any(COMMANDS.match(name) for name in names):
            what = " ".join(argv)[:200]
            found.append({"kind": "process", "what": what, "age_seconds": round(age, 1), "blocking": patching})
        elif names[:1] == ["scp"] and "-t" in argv and argv[-1].startswith("/var/cache/cloud"):
            found.append({"kind": "process", "what": " ".join(argv), "age_seconds": round(age, 1), "blocking": True})
    return found


def blocking(host):
    return [actor["what"] for actor in actors(host) if actor["blocking"]]


def commands(host):
    """Processes only: what must have ended before files are exchanged."""
    return [actor["what"] for actor in actors(host) if actor["kind"] == "process"]


def processes(host, now):
    """(argv, age in seconds) of every process of the VM."""
    folder = (host.root if host.scratch else "") + "/proc"
    uptime = float((host.proc("uptime") or "0").split()[0])
    try:
        ticks = os.sysconf("SC_CLK_TCK")
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        if not name.isdigit() or int(name) == os.getpid():
            continue
        argv = [word for word in (host.proc(name + "/cmdline") or "").split("\0") if word]
        if not argv:
            continue
        try:
            started = int((host.proc(name + "/stat") or "").rsplit(")", 1)[1].split()[19]) / float(ticks)
        except (IndexError, ValueError):
            started = uptime
        yield argv, max(0.0, uptime - started)


def payload_facts(host, path):
    """What compare-and-swap looks at for the tgz (R8)."""
    facts = files.facts_of(host.at(path))
    return dict((key, facts.get(key)) for key in ("kind", "sha256", "mtime_ns", "size"))
