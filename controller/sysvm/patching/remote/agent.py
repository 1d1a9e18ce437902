"""Whether the agent of an SSVM or CPVM is up again: `active` says nothing of it.

It is a process that connects to the management server on port 8250 and stays connected. When it has connected, the
server sends the set-up again: firewall rules and certificates, which restarts apache2. So a good patch shows the
connection, and afterwards the rules that were there before. A VM that had no connection before need not have one after.
"""

import socket
import struct
import time

from . import core
from .failures import Failure
from .journal import Wait
from .services import acted_on, is_active, states

UNIT = "cloud"
PROPERTIES = "/usr/local/cloud/systemvm/conf/agent.properties"
DEFAULT_PORT = 8250
POLL_SECONDS = 0.2
RULES_SECONDS = 10.0
"""The management server deletes rules and adds them again when an agent connects."""
BACK_SECONDS = 60.0
_ESTABLISHED = "01"


def server(host):
    """(addresses, port) of the management server, from agent.properties (`host=ADDRESS[,ADDRESS...][@ALGORITHM]`)."""
    values = {}
    for line in (host.text(PROPERTIES) or "").splitlines():
        key, sign, value = line.partition("=")
        if sign:
            values[key.strip()] = value.strip()
    addresses = [word.strip() for word in values.get("host", "").partition("@")[0].split(",") if word.strip()]
    port = values.get("port", "")
    return addresses, int(port) if port.isdigit() else DEFAULT_PORT


def connected(host):
    """Whether a connection to the management server is established. One that is known by name counts by its port."""
    addresses, port = server(host)
    numeric = [address for address in addresses if _packed(address)]
    wanted = set(_packed(address) for address in numeric)
    for table in ("net/tcp", "net/tcp6"):
        for line in (host.proc(table) or "").splitlines()[1:]:
            words = line.split()
            if len(words) < 4 or words[3] != _ESTABLISHED:
                continue
            address, _, number = words[2].partition(":")
            if int(number, 16) == port and (len(numeric) < len(addresses) or _address(address) in wanted):
                return True
    return False


def _packed(text):
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return _plain(socket.inet_pton(family, text))
        except OSError:
            continue
    return None


def _address(text):
    """The bytes of an address in /proc/net/tcp: 32-bit words in the machine's own order."""
    words = [int(text[start : start + 8], 16) for start in range(0, len(text), 8)]
    return _plain(b"".join(struct.pack("=I", word) for word in words))


def _plain(packed):
    """An IPv4 address as such, also where a program speaks it through an IPv6 socket."""
    return packed[12:] if len(packed) == 16 and packed[:12] == b"\0" * 10 + b"\xff\xff" else packed


def measure(host, order):
    """Part of the baseline: None where no action of this order is the agent's."""
    service = _service(order)
    if service is None or service["action"] == "none":
        return None
    return {"connected": connected(host)}


def _service(order):
    found = [service for service in order["services"] if service["unit"].replace(".service", "") == UNIT]
    return found[0] if found else None


def was_up(work):
    """It was acted on, and had a connection before."""
    baseline = work.journal.baseline() or {}
    service = _service(work.order)
    acted = service is not None and service["unit"] in acted_on(work.journal.records)
    return acted and bool((baseline.get("agent") or {}).get("connected"))


def await_up(work, deadline):
    """After its start. Raises `Failure` when its time is up, or it does not live that long."""
    if not was_up(work):
        return
    service = _service(work.order)
    began = time.monotonic()
    since = time.time()
    problem = _await(work, service, min(service["timeout_seconds"], deadline.left()))
    if problem is not None:
        raise Failure("ServiceFailed", work.services().explain(service["unit"], problem, since - 30), False)
    text = "the agent was connected to the management server {0:.1f} s after its start"
    work.note_all([text.format(time.monotonic() - began)])


def _await(work, service, seconds):
    """None when it is connected, a sentence when it will not be."""
    unit = service["unit"]
    first = states(work.host, [unit])[unit]
    end = time.monotonic() + seconds
    wait = Wait(work.journal, "the agent's connection to the management server", seconds)
    while True:
        wait.goes_on()
        now = states(work.host, [unit])[unit]
        if not is_active(now) or now["restarts"] != first["restarts"]:
            return "it did not stay alive: {0} ({1}), started again {2} times".format(
                now["active"], now["sub"], now["restarts"] - first["restarts"]
            )
        if connected(work.host):
            return None
        if time.monotonic() >= end:
            addresses, port = server(work.host)
            text = "no connection to the management server ({0}, port {1}) within {2:.0f} s, and it had one before"
            return text.format(", ".join(addresses) or "no host in agent.properties", port, seconds)
        work.host.wait(POLL_SECONDS)


def verify(work):
    """At the end of the settle time. Raises `Failure` if the connection, or a rule that let something in, is gone."""
    if not was_up(work):
        return
    if not connected(work.host):
        problem = "its connection to the management server did not last"
        raise Failure("VerifyFailed", work.services().explain(_service(work.order)["unit"], problem, time.time() - 60))
    if work.core.before is None or work.core.before.rules is None:
        return
    end = time.monotonic() + RULES_SECONDS
    while True:
        now = core.look(work.host)
        gone = set(work.core.before.rules) - set(now.rules or work.core.before.rules)
        gone = sorted(rule for rule in gone if rule.startswith("iptables filter -A INPUT"))
        if not gone:
            return
        if time.monotonic() >= end:
            text = "since the agent's start the firewall lacks what it had: " + "; ".join(gone[:3])
            raise Failure("VerifyFailed", text, False)
        work.host.wait(POLL_SECONDS)


def tell_back(work):
    """The old agent, started again: said, and no reason to call files that are right inconsistent."""
    if not was_up(work):
        return
    service = _service(work.order)
    problem = _await(work, service, min(BACK_SECONDS, service["timeout_seconds"]))
    work.note_all([problem and "the old agent runs again, but: " + problem or "the old agent is connected again"])
