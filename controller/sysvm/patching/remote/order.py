"""What the operator may ask for. Everything that arrives is checked here once; the rest of the program trusts it."""

import posixpath
import re

from .failures import Failure
from .store import check_id

ACTIONS = ("none", "reload", "restart", "held-restart", "stop-start")
FORBIDDEN = ("/", "/proc", "/sys", "/dev", "/run", "/boot", "/etc", "/usr", "/var", "/root", "/opt", "/lib", "/bin")
SIGNATURE = "/var/cache/cloud/cloud-scripts-signature"
BAG = re.compile(r"^[a-z0-9_]+\.json$")
PACKAGE = re.compile(r"^[a-z0-9][a-z0-9+.-]{1,63}$")
VERSION = re.compile(r"^[A-Za-z0-9.+~:-]{1,64}$")


def refuse(message):
    raise Failure("ProtocolError", "the order is refused: " + message, False)


def check(order):
    """Raises `Failure` unless `order` has the shape that order_words.py describes."""
    try:
        check_id(order["id"])
        for key in ("epoch", "keep_backups", "reserve_bytes", "reserve_inodes", "min_memory_bytes"):
            if not isinstance(order[key], int) or order[key] < 0:
                refuse("{0} is {1!r}".format(key, order[key]))
        for key in ("settle_seconds", "step_timeout_seconds", "timeout_seconds"):
            if not isinstance(order[key], (int, float)) or order[key] < 0:
                refuse("{0} is {1!r}".format(key, order[key]))
        seen = set()
        for tree in order["trees"]:
            _check_tree(tree, seen)
        for entry in order["files"]:
            _check_entry(entry, True, seen)
        for folder in order["folders"]:
            check_path(folder["path"], seen=None)
        for path in order["remove"]:
            check_path(path, seen)
        check_overlap(order, seen)
        if order.get("packages") is not None:
            _check_packages(order["packages"])
        payload = order["payload"]
        if payload is not None:
            check_path(payload["path"], seen)
            check_digest(payload["sha256"])
        _check_signature(order["signature"])
        for service in order["services"]:
            if service["action"] not in ACTIONS or service["unit"].startswith("-") or "/" in service["unit"]:
                refuse("service {0!r} with action {1!r}".format(service["unit"], service["action"]))
            _check_extras(service)
        for bag in order.get("databags", []):
            _check_bag(bag)
        return order
    except (KeyError, TypeError, AttributeError) as error:
        refuse("{0}: {1}".format(type(error).__name__, error))


def _check_extras(service):
    for held in service.get("hold", []):
        ports = held["ports"]
        if held["protocol"] not in ("udp", "tcp") or not all(isinstance(p, int) and 0 < p < 65536 for p in ports):
            refuse("{0} holds {1!r}".format(service["unit"], held))
        if held.get("binds") is not None:
            check_path(held["binds"], None)
    pair = service.get("pair")
    if pair is not None and not isinstance(pair["may_fail_over"], bool):
        refuse("{0} has {1!r}".format(service["unit"], pair))
    drain = service.get("drain")
    numbers = [drain[key] for key in ("max_old", "min_memory_bytes", "wait_seconds")] if drain else []
    numbers += [service.get("login_seconds", 0), service.get("stop_seconds", 0)]
    numbers += [pair["wait_seconds"], pair["stable_seconds"]] if pair else []
    if not all(isinstance(number, (int, float)) and number >= 0 for number in numbers):
        refuse("{0} has {1!r}".format(service["unit"], numbers))


def _check_packages(packages):
    names = [deb["name"] for deb in packages["debs"]] + packages["remove"]
    if not all(PACKAGE.match(name) for name in names) or len(set(names)) != len(names):
        refuse("the Debian packages {0!r}".format(names))
    for deb in packages["debs"]:
        check_digest(deb["sha256"])
        if not isinstance(deb["size"], int) or deb["size"] < 0 or not VERSION.match(deb["version"]):
            refuse("the Debian package {0!r}".format(deb))
    for path in packages["keep"] + packages["imports"]:
        check_path(path, None)
    if any(posixpath.dirname(path) != "/usr/bin" for path in packages["keep"]):
        refuse("{0!r} are kept from dpkg".format(packages["keep"]))
    for seconds in (packages["lock_seconds"], packages["timeout_seconds"]):
        if not isinstance(seconds, (int, float)) or seconds < 0:
            refuse("{0!r} s for Debian packages".format(seconds))


def _check_bag(bag):
    if not BAG.match(bag["name"]) or not BAG.match(bag["bag"] + ".json") or bag["verb"] not in ("reload", "restart"):
        refuse("the data bag {0!r}".format(bag))
    for path in bag["generated"]:
        check_path(path, None)
    unit, seconds = bag["unit"], bag["timeout_seconds"]
    if unit is not None and (unit.startswith("-") or "/" in unit):
        refuse("the data bag {0!r}".format(bag))
    if not isinstance(seconds, (int, float)) or not 0 < seconds <= 60:
        refuse("{0} s for the data bag {1}".format(seconds, bag["name"]))


def _check_tree(tree, seen):
    check_path(tree["path"], seen)
    inside = set()
    for entry in tree["files"]:
        _check_entry(entry, False, inside)
    for folder in tree["folders"]:
        _relative(folder["path"])
    for path in tree["remove"]:
        _relative(path)
        if any(name == path or name.startswith(path + "/") for name in inside):
            refuse("{0} in {1} is both written and removed".format(path, tree["path"]))
    if not all(isinstance(pattern, str) for pattern in tree["runtime"]):
        refuse("runtime patterns that are no text")
    for one in tree.get("properties", []):
        _relative(one["path"])
        if not all(isinstance(line, str) and "\n" not in line and len(line) < 4096 for line in one["lines"]):
            refuse("lines for {0} that are none".format(one["path"]))


def _check_entry(entry, absolute, seen):
    path = entry["path"]
    check_path(path, seen) if absolute else _relative(path, seen)
    if (entry["sha256"] is None) == (entry["link"] is None):
        refuse("{0} is neither a file nor a link".format(path))
    if entry["sha256"] is not None:
        check_digest(entry["sha256"])
    for key in ("mode", "uid", "gid", "size"):
        if not isinstance(entry[key], int) or entry[key] < 0:
            refuse("{0} of {1} is {2!r}".format(key, path, entry[key]))
    if entry["mode"] & 0o7000:
        text = "mode {0:o} of {1}: set-user-id and its like are kept where they are, never given"
        refuse(text.format(entry["mode"], path))
    entry["keep_mode"], entry["keep_owner"], entry["executable"]


def check_path(path, seen):
    if not path.startswith("/") or posixpath.normpath(path) != path or "\0" in path or path in FORBIDDEN:
        refuse("the path {0!r}".format(path))
    if path == SIGNATURE or path.startswith("/var/lib/sysvm"):
        refuse("{0} is the program's own".format(path))
    _once(path, seen)


def _relative(path, seen=None):
    normal = posixpath.normpath(path)
    if path.startswith("/") or normal != path or path == "." or path.split("/")[0] == ".." or "\0" in path:
        refuse("the path {0!r} in a tree".format(path))
    _once(path, seen)


def _once(path, seen):
    if seen is not None:
        if path in seen:
            refuse("{0} is named twice".format(path))
        seen.add(path)


def check_overlap(order, seen):
    trees = [tree["path"] for tree in order["trees"]]
    for path in seen:
        for tree in trees:
            if path != tree and path.startswith(tree + "/"):
                refuse("{0} lies in the tree {1}".format(path, tree))


def check_digest(text):
    if not isinstance(text, str) or len(text) != 64 or set(text) - set("0123456789abcdef"):
        refuse("{0!r} is no SHA-256".format(text))


def _check_signature(text):
    if len(text) not in (32, 128) or set(text) - set("0123456789abcdef") or not set(text) - set("0"):
        refuse("{0!r} is no MD5 or SHA-512".format(text))


def contents(order):
    """{sha256: size} of all that the order wants to be somewhere."""
    wanted = {}
    for _, entry in entries(order):
        if entry["sha256"] is not None:
            wanted[entry["sha256"]] = entry["size"]
    if order["payload"] is not None:
        wanted[order["payload"]["sha256"]] = order["payload"]["size"]
    for deb in (order.get("packages") or {}).get("debs", []):
        wanted[deb["sha256"]] = deb["size"]
    return wanted


def entries(order):
    """(absolute path, entry) of every file and link of the order."""
    for tree in order["trees"]:
        for entry in tree["files"]:
            yield posixpath.join(tree["path"], entry["path"]), entry
    for entry in order["files"]:
        yield entry["path"], entry


def parent_folders(order):
    """Folders (absolute) that something is renamed in."""
    paths = [path for tree in order["trees"] for path in [tree["path"]]]
    paths += [entry["path"] for entry in order["files"]] + list(order["remove"])
    if order["payload"] is not None:
        paths.append(order["payload"]["path"])
    for bag in order.get("databags", []):
        paths += ["/etc/cloudstack/" + bag["name"]] + bag["generated"]
    return sorted(set(posixpath.dirname(path) for path in paths + [SIGNATURE]))
