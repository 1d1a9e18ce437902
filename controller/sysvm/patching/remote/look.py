"""What the VM is: facts only. Nothing here writes, locks or starts anything that stays."""

import contextlib
import fnmatch
import os

from . import actors, checks, databags, files, hold, redundancy
from . import journal as journals
from .failures import Failure
from .host import cmdline_words
from .services import spelled_out, states

EXCHANGING = ("ext4", "xfs", "btrfs", "overlay", "tmpfs", "f2fs")
MAX_ENTRIES = 20000
MAX_DIGEST_BYTES = 2 * 1024 * 1024 * 1024
MAX_READ = 16 * 1024 * 1024


def probe(host, store, units, paths, samples=1, pause_seconds=0.0):
    """protocol.py `ProbeResult`."""
    words = cmdline_words(host)
    release_line = (host.text("/etc/cloudstack-release") or "").strip() or None
    release = release_line.split() if release_line else []
    signature = host.text(actors.SIGNATURE)
    redundant = words.get("redundant_router", "").lower() in ("true", "1", "yes")
    units = spelled_out(host, units)
    found = states(host, list(dict.fromkeys(units)))
    failing, age = checks.latest(host)
    return {
        "type": words.get("type"),
        "name": words.get("name"),
        "release": release[2] if len(release) > 2 else None,
        "release_line": release_line,
        "debian_version": (host.text("/etc/debian_version") or "").strip() or None,
        "signature": signature.strip() if signature is not None else None,
        "payload_checksums": payload_checksums(host),
        "boot_id": (host.proc("sys/kernel/random/boot_id") or "").strip(),
        "booted": host.text("/var/cache/cloud/boot_up_done") is not None,
        "data_bags": databags.held(host),
        "rules": databags.rules(host),
        "uptime_seconds": float((host.proc("uptime") or "0").split()[0]),
        "units": [found[unit] for unit in units],
        "enabled_services": (host.text("/var/cache/cloud/enabled_svcs") or "").split(),
        "disks": [disk(host, path) for path in paths],
        "memory_available_bytes": host.memory_available(),
        "redundancy": redundancy.facts(host, samples, pause_seconds) if redundant else None,
        "failing_checks": failing,
        "checks_age_seconds": age,
        "actors": actors.actors(host),
        "journal": journal(store),
        "abilities": abilities(host),
    }


def payload_checksums(host):
    real = host.at(actors.PAYLOAD)
    try:
        return dict((name, files.checksum(real, name)) for name in ("md5", "sha512"))
    except OSError:
        return {}


def disk(host, path):
    real = host.at(path)
    mount, kind = host.mount_of(real)
    available, inodes = host.space(real)
    return {
        "path": path,
        "mount": mount,
        "fs": kind,
        "available_bytes": available,
        "available_inodes": inodes,
        "exchange": files.has_renameat2() if kind in EXCHANGING else None,
    }


def journal(store):
    """protocol.py `Journal`."""
    operations = store.operations()
    unfinished = [report for _, report in operations if report["phase"] not in journals.FINAL]
    finished = [report for _, report in operations if report["phase"] in journals.FINAL]
    finished.sort(key=lambda report: report["finished_at"], reverse=True)
    for report in unfinished:
        report["alive"] = store.alive(report["id"])
    backups = []
    for operation, report in store.backups():
        size = sum(files.held(stage) for stage in operation.stages())
        backups.append({"id": operation.id, "finished_at": report["finished_at"], "size_bytes": size})
    return {
        "highest_epoch": store.highest_epoch(),
        "unfinished": unfinished[0] if unfinished else None,
        "last_finished": finished[0] if finished else None,
        "backups": backups,
    }


def abilities(host):
    return {
        "systemd_run": host.has_program("systemd-run"),
        "renameat2": files.has_renameat2(),
        "nfnetlink_queue": hold.usable(host),
        "nft": host.has_program("nft"),
    }


# ------------------------------------------------------------------------------------------ digest, read


@contextlib.contextmanager
def idle():
    """Least priority for processor and disk, as far as it can be taken back afterwards."""
    if os.getuid() != 0:
        yield
        return
    before = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, 19)
    files.set_disk_priority(True)
    try:
        yield
    finally:
        files.set_disk_priority(False)
        try:
            os.setpriority(os.PRIO_PROCESS, 0, before)
        except PermissionError:
            # A root without this right stays slow for the session; what changes the VM runs in a process of its own.
            pass


def digest(host, paths, roots, exclude, digests):
    """protocol.py `DigestResult`. `digests`: a `Read` or `Known` of digests.py."""
    wanted = {}
    truncated = False
    for path in paths:
        wanted[path] = host.at(path)
    for root in roots:
        top = host.at(root)
        if not os.path.isdir(top) or os.path.islink(top):
            continue
        for relative, _ in files.walk(top):
            path = root.rstrip("/") + "/" + relative
            if any(fnmatch.fnmatchcase(path, pattern) for pattern in exclude):
                continue
            wanted[path] = os.path.join(top, relative)
            if len(wanted) >= MAX_ENTRIES:
                truncated = True
                break
    facts = []
    read = 0
    for path in sorted(wanted):
        fact = files.facts_of(wanted[path], content=False)
        if fact["kind"] == "file":
            read += fact["size"]
            if read > MAX_DIGEST_BYTES:
                truncated = True
                break
            try:
                fact["sha256"] = digests.of(path, wanted[path])
            except FileNotFoundError:
                fact = {"kind": "absent"}
        facts.append(as_fact(path, fact))
    digests.keep()
    return {"facts": facts, "truncated": truncated, "read_bytes": digests.read_bytes}


def as_fact(path, fact):
    return {
        "path": path,
        "kind": fact["kind"],
        "mode": fact.get("mode", 0),
        "uid": fact.get("uid", 0),
        "gid": fact.get("gid", 0),
        "size": fact.get("size", 0),
        "mtime": fact.get("mtime_ns", 0) / 1e9,
        "sha256": fact.get("sha256"),
        "link": fact.get("link"),
    }


def read(host, path):
    """(content or None, digest) of a regular file of at most 16 MiB."""
    real = host.at(path)
    fact = files.facts_of(real, content=False)
    if fact["kind"] == "absent":
        return None, None
    if fact["kind"] != "file" or fact["size"] > MAX_READ:
        raise Failure("ProtocolError", "{0} is a {1} of {2} bytes".format(path, fact["kind"], fact["size"]), False)
    content = files.read_bytes(real)
    return content, files.checksum(real, "sha256")
