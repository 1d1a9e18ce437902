"""One run of CloudStack's configure.py for one data bag, so that it cannot cost the router its configuration.

The bags are the only copy of it. configure.py takes no lock, writes a bag in place, and takes one that it cannot read
for an empty one, which it then saves (CloudStack 4.21 merge.py, CsDatabag.py). So it runs behind the fence only, which
stays closed for as long as it works, and every bag is copied before and compared after. The copies are on the disk
before the journal says that the run begins: whoever finds that record puts back what became less.
"""

import json
import os
import threading

from . import fence, files
from .failures import Failure
from .host import tail
from .questions import GapMeter
from .services import is_active, states
from .switch import Lost, sync_parents

FOLDER = "/etc/cloudstack"
PROCESSED = "/var/cache/cloud/processed"
PROGRAM = "/opt/cloud/bin/configure.py"
NEEDED = ("cmdline", "ips")
"""Without them CloudStack 4.21 CsAddress.compare takes every address off every device, that of ssh included."""
OBVIOUS_BYTES = 64 * 1024
"""A look does not parse what is larger: an empty bag has a few characters."""
MAX_COUNTED_BYTES = 1024 * 1024
"""A look counts no rules in what is larger: a parsed bag takes ten times its size."""
MAX_BAG_BYTES = 8 * 1024 * 1024
"""Larger ones are not compared within this program's memory."""
RENEW_SECONDS = 0.4
EFFECT = "; {0} had been run: what it did to addresses and firewall rules stays until CloudStack pushes again"
SAVED = "databags.json"
COPIES = "databags"
REASON = "DatabagFailed"
SAME = ("kind", "mode", "uid", "gid", "sha256", "mtime_ns")


def names(host):
    """The bags of this VM, by path."""
    try:
        found = os.listdir(host.resolve(FOLDER))
    except OSError:
        return []
    return sorted(FOLDER + "/" + name for name in found if name.endswith(".json"))


def read(real):
    """A bag. Raises ValueError with the reason where configure.py would find an empty one."""
    facts = files.facts_of(real, content=False)
    if facts["kind"] != "file":
        raise ValueError("it is {0}".format(facts["kind"]))
    if facts["size"] > MAX_BAG_BYTES:
        raise ValueError("it has {0} MiB, too many to be compared".format(facts["size"] >> 20))
    bag = json.loads(files.read_bytes(real).decode("utf-8"))
    if not isinstance(bag, dict):
        raise ValueError("it is no JSON object")
    return bag


def held(host):
    """How many bags hold anything that the management server sent. The VM makes `NEEDED` itself from its boot line."""
    return sum(
        os.path.basename(path)[: -len(".json")] not in NEEDED and holds_entries(host.at(path)) for path in names(host)
    )


def holds_entries(real):
    """Whether a bag says more than its own name. One that cannot be read says nothing, as for configure.py."""
    try:
        facts = files.facts_of(real, content=False)
        if facts["kind"] == "file" and facts["size"] > OBVIOUS_BYTES:
            return True
        return any(value for key, value in read(real).items() if key != "id")
    except (ValueError, OSError):
        return False


def rules(host):
    """protocol.py `ProbeResult.rules`: what a router holds, by kind. A bag that is not there holds none.

    Shapes: CloudStack 4.21 cs_firewallrules.py, cs_forwardingrules.py, cs_loadbalancer.py, cs_network_acl.py,
    cs_vpnusers.py.
    """
    found = {}
    for name, count in COUNTERS:
        real = host.at("{0}/{1}.json".format(FOLDER, name))
        try:
            if not os.path.lexists(real):
                bag = {}
            elif os.lstat(real).st_size > MAX_COUNTED_BYTES:
                continue
            else:
                bag = read(real)
            found.update(count(dict((key, value) for key, value in bag.items() if key != "id")))
        except (ValueError, OSError, AttributeError, TypeError, KeyError, IndexError):
            continue  # not what CloudStack writes: it says nothing
    return found


def _firewall(bag):
    """By rule. A rule of type System is the server's own (a VPN's ports, the default of egress) and in no list."""
    own = [rule for rule in bag.values() if str(rule.get("type", "")).lower() != "system"]
    egress = sum(str(rule.get("traffic_type", "")).lower() == "egress" for rule in own)
    return {"Firewall": len(own) - egress, "Egress": egress}


def _forwarding(bag):
    """By public address: a list for static NAT, an object of rules for port forwarding."""
    rules = [rule for of in bag.values() for rule in (of if isinstance(of, list) else of.values())]
    static = sum(rule["type"] == "staticnat" for rule in rules)
    return {"StaticNat": static, "PortForwarding": len(rules) - static}


def _load_balancer(bag):
    """Its last push: `address:port:networks` for each rule."""
    added = (bag["config"][0].get("add_rules") or []) if bag else []
    return {"LoadBalancer": len(set(tuple(rule.split(":")[:2]) for rule in added))}


def _acls(bag):
    """By device of a tier."""
    tiers = [acl for acl in bag.values() if not acl.get("private_gateway_acl")]
    items = [rule for acl in tiers for way in ("ingress_rules", "egress_rules") for rule in acl.get(way) or []]
    return {"NetworkACL": len(items)}


def _vpn_users(bag):
    return {"VpnUser": len(bag)}


COUNTERS = (
    ("firewallrules", _firewall),
    ("forwardingrules", _forwarding),
    ("loadbalancer", _load_balancer),
    ("networkacl", _acls),
    ("vpnuserlist", _vpn_users),
)
"""Bags whose entries are rules of a tenant, and how many of which kind are in one."""


def unreadable(host):
    """Sentences about bags that do not parse."""
    wrong = []
    for path in sorted(set(names(host)) | set("{0}/{1}.json".format(FOLDER, name) for name in NEEDED)):
        try:
            read(host.at(path))
        except (ValueError, OSError) as error:
            wrong.append("{0}: {1}".format(path, error))
    return wrong


def lost(before, after, where=""):
    """Where `after` has less than `before`: keys of objects, entries of lists, at any depth."""
    if isinstance(before, dict):
        if not isinstance(after, dict):
            return [where or "everything"]
        found = []
        for key in sorted(before):
            path = where + "/" + str(key)
            found += lost(before[key], after[key], path) if key in after else [path]
        return found
    if isinstance(before, list):
        return [] if isinstance(after, list) and len(after) >= len(before) else [where]
    return []


def preflight(host, order):
    """Before anything is changed. Raises `Failure` where configure.py must not be run on this VM."""
    if not order.get("databags"):
        return
    wrong = unreadable(host)
    if wrong:
        text = "configure.py would take data bags for empty ones: {0}; mend them, or set databags: Never"
        raise Failure(REASON, text.format("; ".join(wrong[:3])), False)
    if host.text("/var/cache/cloud/boot_up_done") is None:
        raise Failure("VMBusy", "CloudStack's boot scripts have not finished (no boot_up_done)")
    if not host.filters_packets():
        text = "nft is missing, so nothing can keep commands out while configure.py works; set databags: Never"
        raise Failure(REASON, text, False)


# ------------------------------------------------------------------------------------------ forward


def run(work, deadline):
    """Every bag of the order, one after the other, behind a fence of its own. Raises `Failure`: then it goes back."""
    wanted = work.order.get("databags", [])
    if not wanted:
        return
    work.gate = fence.Fence(work.host, work.journal)
    work.note_all(["before configure.py " + work.gate.close(deadline)])
    try:
        if work.gate.hold.since is None:
            raise Failure(REASON, "commands cannot be kept out: " + work.gate.hold.sentence(), False)
        with Kept(work.gate.hold, sum(one["timeout_seconds"] for one in wanted)):
            wrong = unreadable(work.host)
            if wrong:
                raise Failure(REASON, "data bags do not parse: " + "; ".join(wrong[:3]), False)
            save(work)
            for one in wanted:
                deadline.check("the data bags")
                apply(work, one)
            after = dict((path, files.facts_of(work.host.at(path)).get("sha256")) for path in _saved(work))
            work.journal.add("bags", state="done", after=after)
    except Failure:
        # Nobody else could come in: whatever the bags are now is this run's work.
        work.bags_are_ours = True
        raise
    finally:
        work.gate.open()


class Kept(object):
    """The hold of new ssh connections, renewed while something works; the kernel ends it a second after the last time,
    whatever becomes of this process."""

    def __init__(self, hold, seconds):
        self._hold = hold
        self._times = int(seconds / RENEW_SECONDS) + 1
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew)
        self._thread.daemon = True

    def __enter__(self):
        self._thread.start()
        return self

    def _renew(self):
        while self._times > 0 and not self._done.wait(RENEW_SECONDS):
            self._times -= 1
            self._hold.renew()

    def __exit__(self, *ignored):
        self._done.set()
        self._thread.join(15.0)


def save(work):
    """Copies of all bags, and of what configure.py makes of them, on the file system where each lies."""
    host = work.host
    moved = set(move["live"] for move in work.plan["moves"])
    paths = names(host) + [path for one in work.order["databags"] for path in one["generated"]]
    stages = dict((host.mount_of(os.path.dirname(stage))[0], stage) for stage in work.operation.stages())
    for stage in stages.values():
        files.remove_tree(os.path.join(stage, COPIES))
    entries = []
    for number, path in enumerate(dict.fromkeys(paths)):
        real = host.at(path)
        if real in moved:
            # It has its way back among the moves.
            continue
        facts = files.facts_of(real)
        if facts["kind"] not in ("file", "absent"):
            continue
        copy = None
        if facts["kind"] == "file":
            copy = os.path.join(stages[host.mount_of(os.path.dirname(real))[0]], COPIES, str(number))
            files.make_folders(os.path.dirname(copy), 0o700)
            _copy(real, copy, facts)
        entries.append({"path": path, "real": real, "copy": copy, "facts": facts, "bag": path.startswith(FOLDER + "/")})
    for stage in stages.values():
        if os.path.isdir(os.path.join(stage, COPIES)):
            files.sync_folder(os.path.join(stage, COPIES))
    work.operation.save(SAVED, entries)
    # From this record on whoever finds this operation unfinished compares the bags with their copies.
    work.journal.add("bags", state="start")


def _copy(real, copy, facts):
    files.write_new(copy, files.chunks_of(real), 0o600)
    files.set_owner(copy, facts["uid"], facts["gid"])
    files.copy_xattrs(real, copy)
    os.chmod(copy, facts["mode"])
    files.set_times(copy, facts["mtime_ns"], facts["mtime_ns"])
    if files.checksum(copy, "sha256") != facts["sha256"]:
        raise Failure("OtherActor", "{0} changed while it was copied".format(real))


def _saved(work):
    return [entry["path"] for entry in work.operation.load(SAVED) or []]


def apply(work, one):
    """configure.py for one bag. Its exit code says little, so the bags are compared."""
    unit = "configure.py " + one["name"]
    if not files.exists(work.host.at("{0}/{1}.json".format(FOLDER, one["bag"]))):
        work.note_all(["{0}: this router has no such bag, nothing was to be applied".format(unit)])
        return
    services = work.services()
    questions = [check for service in work.order["services"] for check in services.questions(service)]
    # sshd does not answer because of us.
    questions = [check for check in questions if check["port"] not in work.gate.hold.ports]
    work.journal.add("unit", unit=unit, action="rerun", state="start", back=False, seconds=one["timeout_seconds"])
    with GapMeter(questions) as meter:
        done = work.host.run([work.host.at(PROGRAM), one["name"]], one["timeout_seconds"])
    wrong = [] if done.ok else [done.sentence()]
    wrong += less(work)
    values = {"gap": meter.gap, "slowest": meter.slowest}
    work.journal.add("unit", unit=unit, action="rerun", state="done", back=False, ok=not wrong, **values)
    if wrong:
        raise Failure(REASON, "{0}: {1}".format(unit, tail("; ".join(wrong), 1200)), False)


def less(work):
    """Sentences about bags that have less than their copies."""
    wrong = []
    for entry in work.operation.load(SAVED) or []:
        if not entry["bag"] or entry["copy"] is None:
            continue
        try:
            found = lost(read(entry["copy"]), read(entry["real"]))
        except (ValueError, OSError) as error:
            wrong.append("{0} cannot be read: {1}".format(entry["path"], error))
            continue
        if found:
            wrong.append("{0} has lost {1}".format(entry["path"], ", ".join(found[:5])))
    return wrong


# ------------------------------------------------------------------------------------------ back


def was_begun(records):
    """Whether a run began whose bags are still to be compared: after a commit they belong to the router again."""
    kinds = [record for record in records if record["kind"] == "bags"]
    committed = any(record["kind"] == "phase" and record["phase"] == "Committed" for record in records)
    return bool(kinds) and not committed


def restore(work, at_boot):
    """Bags and what was made of them are what they were. May be repeated any number of times. Returns what cannot be
    taken back, as the end of a sentence."""
    records = work.journal.records
    if not was_begun(records):
        return ""
    gate = fence.Fence(work.host, work.journal)
    try:
        if not at_boot:
            wait(work, gate)
        back = compare_and_put_back(work)
    finally:
        gate.open()
    if not at_boot:
        act_back(work, back)
    ran = sorted(set(record["unit"] for record in records if record["kind"] == "unit" and record["action"] == "rerun"))
    return EFFECT.format(", ".join(ran)) if ran else ""


def wait(work, gate):
    """A command that works on the bags now would save what it read before: it ends first, if it ends."""
    try:
        gate.quiet(_Patience(), fence.LOCK_SECONDS)
    except Failure as failure:
        work.note_all(["the data bags were put back beside others: " + failure.message])


def compare_and_put_back(work):
    """Paths that were put back."""
    records = work.journal.records
    ended = [record["after"] for record in records if record["kind"] == "bags" and record["state"] == "done"]
    back, theirs = [], []
    for entry in work.operation.load(SAVED) or []:
        now = files.facts_of(entry["real"])
        if all(now.get(key) == entry["facts"].get(key) for key in SAME):
            continue
        if is_theirs(work, entry, now, ended[-1] if ended else None):
            theirs.append(entry["path"])
            continue
        back.append(entry["path"])
        put_back(entry)
    if theirs:
        work.note_all(["written by somebody else since, and left as it is: " + ", ".join(theirs[:5])])
    return back


class _Patience(object):
    """Going back has no deadline of its own; what waits has its bound."""

    def left(self):
        return fence.LOCK_SECONDS


def is_theirs(work, entry, now, after):
    """Whether somebody else wrote it after our run, and lost nothing by that."""
    if work.bags_are_ours:
        return False
    if after is not None and now.get("sha256") in (entry["facts"].get("sha256"), after.get(entry["path"])):
        return False
    if not entry["bag"]:
        return after is not None
    if after is None and not pushed_since(work):
        return False
    try:
        live = read(entry["real"])
        before = read(entry["copy"]) if entry["copy"] is not None else {}
    except (ValueError, OSError):
        return False
    return not lost(before, live)


def pushed_since(work):
    """Whether a push was merged since the run began: CloudStack 4.21 merge.py files each one away."""
    began = min(record["at"] for record in work.journal.records if record["kind"] == "bags")
    folder = work.host.resolve(PROCESSED)
    try:
        return any(os.lstat(os.path.join(folder, name)).st_mtime >= began for name in os.listdir(folder))
    except OSError:
        return False


def put_back(entry):
    live, copy = entry["real"], entry["copy"]
    if copy is None:
        files.unlink_if_there(live)
        sync_parents(live)
    elif files.exists(copy):
        files.rename(copy, live)
        sync_parents(live, copy)
    else:
        raise Lost("the copy of {0} is gone".format(entry["path"]))


def act_back(work, back):
    """Services whose files were put back read them again."""
    baseline = work.journal.baseline() or {"states": {}}
    for one in work.order.get("databags", []):
        unit = one["unit"]
        if unit is None or unit not in baseline["states"] or not is_active(baseline["states"][unit]):
            continue
        if not set(one["generated"]) & set(back):
            continue
        verb = one["verb"] if is_active(states(work.host, [unit])[unit]) else "restart"
        work.journal.add("unit", unit=unit, action=verb, state="start", back=True)
        work.host.run(["systemctl", "reset-failed", "--", unit], 10.0)
        done = work.host.run(["systemctl", verb, "--", unit], 60.0)
        ok = done.ok and is_active(states(work.host, [unit])[unit])
        values = {"gap": None, "slowest": None}
        work.journal.add("unit", unit=unit, action=verb, state="done", back=True, ok=ok, **values)
        if not ok:
            raise Failure("ServiceFailed", "{0} with its former configuration: {1}".format(unit, done.sentence()))


def sweep(store):
    """Copies of a committed operation are of no more use: they hold secrets, and the router has moved on."""
    for operation, _ in store.backups():
        for stage in operation.stages():
            files.remove_tree(os.path.join(stage, COPIES))
        files.unlink_if_there(operation.path(SAVED))
