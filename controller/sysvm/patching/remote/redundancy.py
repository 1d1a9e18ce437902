"""What a router of a redundant pair is, by facts of its own.

CloudStack 4.21 checkrouter.sh never asks keepalived: it counts addresses, or looks at one interface. So the role is
judged by what each actor leaves behind: keepalived takes the gateways, its notify script (configure_router.py) sets the
public interfaces and `redundant_state`, heartbeat.sh writes a time, conntrackd counts what it holds and what it was
sent. And the guest network itself is asked who has the gateway: that is the one fact that a router which is wrong about
itself cannot hide. Nothing here signals keepalived; the ARP question is a probe (RFC 5227), which enters no table.
"""

import json
import os
import re
import select
import socket
import struct
import time

from . import conntrackd
from .services import is_active, states

KEEPALIVED = "/etc/keepalived/keepalived.conf"
HEARTBEAT = "/ramdisk/rrouter/keepalived.ts"
HEARTBEAT_SECONDS = 10.0
"""CloudStack 4.21 check_heartbeat.sh takes an older one for a strike."""
MAX_SAMPLES = 5
MAX_PAUSE_SECONDS = 10.0
MAX_GATEWAYS = 4
"""Asked about over ARP and told; a VPC router may have more."""
ANSWER_SECONDS = 0.3
STATES = ("PRIMARY", "BACKUP", "FAULT")

_ARP = 0x0806


# ------------------------------------------------------------------------------------------ facts


def facts(host, samples=1, pause_seconds=0.0):
    """protocol.py `RedundancyState`: the script's word, and samples of the facts that it does not look at."""
    said = host.run([host.at("/opt/cloud/bin/checkrouter.sh")], 15.0, merged=False).output
    role = next((word for word in STATES if word in said), "UNKNOWN")
    taken = []
    pause = min(float(pause_seconds), MAX_PAUSE_SECONDS)
    began = time.monotonic()
    for number in range(max(1, min(int(samples), MAX_SAMPLES))):
        # By the clock, not after each other: samples of two routers that begin together stay together on a busy host.
        host.wait(max(0.0, began + number * pause - time.monotonic()))
        taken.append((time.monotonic(), sample(host)))
    now = time.monotonic()
    return {"role": role, "samples": [dict(one, age_seconds=round(now - at, 2)) for at, one in taken]}


def sample(host):
    """protocol.py `RedundancySample`, without its age."""
    found = states(host, ["keepalived", "conntrackd"])
    internal, external = flows(host) if is_active(found["conntrackd"]) else (None, None)
    return {
        "keepalived_active": is_active(found["keepalived"]),
        "redundant_state": redundant_state(host),
        "heartbeat_age_seconds": heartbeat_age(host),
        "public_up": public_up(host),
        "conntrackd_active": internal is not None,
        "conntrackd_lock": conntrackd.left_lock(host) if internal is None else None,
        "flows": internal,
        "replicated_flows": external,
        "gateways": gateways(host),
    }


def holds_gateway(host):
    """Whether this router has an address that keepalived moves."""
    return any(gateway["held"] for gateway in gateways(host, ask=False))


def settings(host):
    """(seconds between adverts, [(gateway, device)]) of the keepalived.conf that CsRedundant.py has written."""
    text = re.sub(r"[!#].*", "", host.text(KEEPALIVED) or "")
    advert = re.search(r"\badvert_int\s+([0-9.]+)", text)
    interface = re.search(r"^\s*interface\s+(\S+)", text, re.MULTILINE)
    default = interface.group(1) if interface else "eth0"
    found = []
    for block in re.findall(r"\bvirtual_ipaddress\s*\{([^}]*)\}", text):
        for line in block.splitlines():
            words = line.split()
            if words and re.match(r"[0-9]+\.[0-9.]+(/[0-9]+)?$", words[0]):
                device = words[words.index("dev") + 1] if "dev" in words[:-1] else default
                found.append((words[0].partition("/")[0], device))
    return float(advert.group(1)) if advert else 1.0, found


def gateways(host, ask=True):
    """The addresses that keepalived moves: whether this router has them, and with `ask` who else answers for them."""
    _, wanted = settings(host)
    if not wanted:
        return []
    held = set()
    for line in host.run(["ip", "-o", "-4", "addr", "show"], 5.0, merged=False).output.splitlines():
        words = line.split()
        if len(words) > 3 and words[2] == "inet":
            held.add((words[3].partition("/")[0], words[1]))
    macs = dict((name, mac) for name, (_, mac) in links(host).items())
    asked = wanted[:MAX_GATEWAYS]
    answers = who_has([(address, device, macs.get(device)) for address, device in asked]) if ask else {}
    return [
        {
            "address": address,
            "held": (address, device) in held,
            "mac": macs.get(device) or "",
            "answers": answers.get((address, device)),
        }
        for address, device in asked
    ]


def links(host):
    """{interface: (it is up, its MAC)}."""
    found = {}
    for line in host.run(["ip", "-o", "link", "show"], 5.0, merged=False).output.splitlines():
        match = re.match(r"[0-9]+:\s+([^:@\s]+)(?:@[^:]*)?:\s+<([^>]*)>", line)
        if match:
            mac = re.search(r"link/ether ([0-9a-f:]{17})", line)
            found[match.group(1)] = ("UP" in match.group(2).split(","), mac.group(1) if mac else None)
    return found


def public_up(host):
    """Whether a public interface is up; None: there is none, or which they are is not known."""
    try:
        bag = json.loads(host.text("/etc/cloudstack/ips.json") or "{}")
        names = set(name for name, entries in bag.items() if isinstance(entries, list) and _public(entries))
    except (ValueError, AttributeError):
        return None
    found = links(host)
    ups = [found[name][0] for name in names if name in found]
    return any(ups) if ups else None


def _public(entries):
    return any(entry.get("nw_type") == "public" and entry.get("add", True) for entry in entries)


def redundant_state(host):
    """What configure_router.py noted last in /etc/cloudstack/cmdline.json."""
    try:
        state = json.loads(host.text("/etc/cloudstack/cmdline.json") or "{}")["config"]["redundant_state"]
    except (ValueError, KeyError, TypeError):
        return None
    return state if state in STATES else None


def heartbeat_age(host):
    try:
        return round(max(0.0, time.time() - os.stat(host.resolve(HEARTBEAT)).st_mtime), 1)
    except OSError:
        return None


def flows(host):
    """(connections of this router, connections that the other one has sent) by conntrackd; None: it does not answer."""
    done = host.run(["conntrackd", "-s"], 5.0, merged=False)
    found = {}
    cache = None
    for line in done.output.splitlines() if done.ok else ():
        heading = re.match(r"cache (internal|external)", line)
        cache = heading.group(1) if heading else cache
        number = re.match(r"current active connections:\s+([0-9]+)", line)
        if number and cache:
            found[cache] = int(number.group(1))
    return found.get("internal"), found.get("external")


# ------------------------------------------------------------------------------------------ ARP


def who_has(questions, seconds=ANSWER_SECONDS):
    """{(address, device): sorted MACs of others that say they have it}; None in place of the MACs: it cannot be asked.

    `questions`: (address, device, the device's own MAC). Each is asked twice, all at once.
    """
    answers = {}
    sockets = {}
    for address, device, mac in questions:
        try:
            asking = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ARP))
            try:
                asking.bind((device, _ARP))
                asking.setblocking(False)
                probe = _probe(address, mac)
                asking.send(probe)
            except (OSError, ValueError, AttributeError):
                asking.close()
                raise
        except (OSError, ValueError, AttributeError):
            answers[(address, device)] = None
            continue
        answers[(address, device)] = set()
        sockets[asking] = (address, device, probe)
    began = time.monotonic()
    again = True
    try:
        while sockets:
            left = began + seconds - time.monotonic()
            if left <= 0:
                break
            if again and left < seconds / 2:
                again = False
                for asking, (_, _, probe) in sockets.items():
                    _send(asking, probe)
            ready, _, _ = select.select(list(sockets), [], [], min(left, seconds / 2))
            for asking in ready:
                address, device, probe = sockets[asking]
                mac = _answer(asking, address)
                if mac is not None and mac != probe[6:12]:
                    answers[(address, device)].add(":".join("{0:02x}".format(byte) for byte in mac))
    finally:
        for asking in sockets:
            asking.close()
    return dict((key, sorted(found)[:4] if found is not None else None) for key, found in answers.items())


def _probe(address, mac):
    own = bytes(int(part, 16) for part in mac.split(":"))
    head = b"\xff" * 6 + own + struct.pack(">H", _ARP)
    return head + struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + own + b"\0" * 10 + socket.inet_aton(address)


def _send(asking, probe):
    try:
        asking.send(probe)
    except OSError:
        # The first question stands; an interface that went down meanwhile has no answers.
        pass


def _answer(asking, address):
    """The MAC in an ARP reply for `address`, None for anything else."""
    try:
        frame = asking.recv(256)
    except OSError:
        return None
    is_reply = len(frame) >= 42 and frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\x02"
    return frame[22:28] if is_reply and frame[28:32] == socket.inet_aton(address) else None


# ------------------------------------------------------------------------------------------ the role


def role_of(one):
    """(PRIMARY or BACKUP, None) if a sample speaks with one voice, else (None, what contradicts)."""
    if not one["keepalived_active"]:
        return None, "keepalived is not active"
    if not one["gateways"]:
        return None, "keepalived.conf names no gateway"
    held = set(gateway["held"] for gateway in one["gateways"])
    if len(held) > 1:
        return None, "it has some of its gateways and not the others"
    primary = held.pop()
    role = "PRIMARY" if primary else "BACKUP"
    if one["redundant_state"] != role:
        return None, "the gateway says {0} and redundant_state says {1}".format(role, one["redundant_state"])
    if one["public_up"] is not None and one["public_up"] is not primary:
        up = "up" if one["public_up"] else "down"
        return None, "the gateway says {0} and the public interface is {1}".format(role, up)
    for gateway in one["gateways"]:
        others = gateway["answers"]
        if others is not None and len(others) != (0 if primary else 1):
            said = ", ".join(others) or "nobody"
            return None, "{0} and {1} answers for the gateway {2}".format(role, said, gateway["address"])
    if one["heartbeat_age_seconds"] is None or one["heartbeat_age_seconds"] > HEARTBEAT_SECONDS:
        return None, "keepalived has not written its heartbeat for more than {0:g} s".format(HEARTBEAT_SECONDS)
    if not one["conntrackd_active"]:
        lock = one["conntrackd_lock"]
        held = ": one that was killed left its lock file {0}".format(lock) if lock else ""
        return None, "conntrackd does not answer" + held
    return role, None
