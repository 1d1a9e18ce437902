"""Requests of tenants wait in the kernel while their service restarts.

A service that must restart is deaf for a tenth of a second, and a DNS question of that moment is lost. So what asks it
is sent to an NFQUEUE for that moment and let in afterwards. Three things make that harmless:

* The rules stand in mangle INPUT. What is let go goes on to filter INPUT, so the firewall decides as ever.
* They name interfaces and ports, and `--queue-bypass`: if this program dies, the kernel lets everything through.
* The thread that keeps the packets lets all of them go when the time is up, whatever the restart does.

The same for IPv6 where a guest interface has an address of it; one queue takes both. The chain has a name of its own,
so that what a crash left behind can be found, also in rules that were saved meanwhile.
"""

import json
import os
import re
import socket
import struct
import threading
import time

from . import files
from .host import cmdline_words

CHAIN = "SYSVM_HOLD"
LIMIT_SECONDS = 3.0
"""No packet waits longer. A resolver asks again after 5 s, TCP after 1 s."""
SAVED_RULES = ("/etc/iptables/rules.v4", "/etc/iptables/rules.v6", "/etc/iptables/rules.nftables")
QUEUES = range(53920, 53928)
MAX_PACKETS = 4096
FAMILIES = ("iptables", "ip6tables")
DRAIN_SECONDS = 0.05
"""Between hold and restart: what was let in before is answered, which for a request takes milliseconds."""
PACE, PACE_SECONDS, RELEASE_SECONDS = 2, 0.004, 0.25
"""At least so many packets so often, and more if all of them would take longer than that."""
GUEST_NIC = {"router": "eth0", "dhcpsrvr": "eth0", "elbvm": "eth0", "ilbvm": "eth0"}
"""Where CloudStack's own facts are missing; a VPC router has as many guest networks as it has tiers, so none here."""

_NETFILTER = 12
_QUEUE_SUBSYSTEM = 3
_PACKET, _CONFIG, _BATCH = 0, 2, 3
_ACCEPT = 1


class NotHeld(Exception):  # noqa: N818 - says what it means
    """Packets cannot be held here: the sentence says why."""


# ------------------------------------------------------------------------------------------ the queue


class Queue(object):
    """An NFQUEUE, spoken to over a raw nfnetlink socket (linux/netfilter/nfnetlink_queue.h)."""

    def __init__(self):
        self.held = 0
        self.longest = 0.0
        self._waiting = []
        self._last = 0
        self._first_at = None
        self._deadline = None
        self._pace = PACE
        self._next_at = 0.0
        self._open = threading.Event()
        self._done = threading.Event()
        self._thread = None
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER)
        except OSError as error:
            raise NotHeld("no netfilter socket: {0}".format(error.strerror))
        try:
            self._socket.settimeout(1.0)
            self._socket.bind((0, 0))
            self.number = self._bind_any()
        except OSError as error:
            self._socket.close()
            raise NotHeld("no packet queue: {0}".format(error.strerror or error))

    def _bind_any(self):
        problem = None
        for number in QUEUES:
            try:
                self._configure(number, 1, struct.pack(">BxH", 1, socket.AF_INET))
            except OSError as error:
                problem = error
                continue
            # Only numbers are needed, not contents. A queue that is full lets packets through.
            self._configure(number, 2, struct.pack(">IB", 0, 1))
            self._configure(number, 3, struct.pack(">I", MAX_PACKETS))
            self._configure(number, 4, struct.pack(">I", 1), 5, struct.pack(">I", 1))
            return number
        raise problem

    def _configure(self, number, kind, value, kind2=None, value2=b""):
        body = _attribute(kind, value) + (_attribute(kind2, value2) if kind2 is not None else b"")
        self._send(number, _CONFIG, body, True)
        answer = self._socket.recv(65536)
        code = struct.unpack_from("=i", answer, 16)[0]
        if code:
            raise OSError(-code, os.strerror(-code))

    def _send(self, number, kind, body, ack):
        body = struct.pack(">BBH", 0, 0, number) + body
        head = struct.pack("=IHHII", 16 + len(body), _QUEUE_SUBSYSTEM << 8 | kind, 5 if ack else 1, 1, 0)
        self._socket.send(head + body)

    def keep(self, seconds):
        """From now on packets wait, at most `seconds`."""
        self._deadline = time.monotonic() + seconds
        self._thread = threading.Thread(target=self._read)
        self._thread.daemon = True
        self._thread.start()

    def _read(self):
        self._socket.settimeout(0.02)
        while not self._done.is_set():
            if time.monotonic() >= self._deadline:
                self.let_go()
            try:
                self._take(self._socket.recv(1 << 18))
            except socket.timeout:
                pass
            except OSError:
                # Messages were lost (ENOBUFS): their packets have numbers below the next one that is seen.
                pass
            if self._open.is_set():
                self._socket.settimeout(PACE_SECONDS)
                self._release()

    def _take(self, content):
        for number in _packets(content):
            self._waiting.append(number)
            self._last = number
            if not self._open.is_set():
                self.held += 1
                if self._first_at is None:
                    self._first_at = time.monotonic()

    def _release(self):
        """A few at a time, in their order: the queue of a server that listens is short (dnsmasq 32, the password
        server 5 connections)."""
        if not self._waiting:
            return
        now = time.monotonic()
        if now < self._next_at:
            return
        self._next_at = now + PACE_SECONDS
        self._pace = max(self._pace, len(self._waiting) * PACE_SECONDS / RELEASE_SECONDS)
        some = self._waiting[: int(self._pace)]
        self._waiting = self._waiting[len(some) :]
        self._accept(some[-1])

    def _accept(self, number):
        """This packet and all that came before it."""
        verdict = struct.pack(">II", _ACCEPT, number & 0xFFFFFFFF)
        self._send(self.number, _BATCH, _attribute(2, verdict), False)

    def let_go(self):
        """What waits goes on its way within a quarter of a second, and so does whatever still comes."""
        if not self._open.is_set():
            if self._first_at is not None:
                self.longest = time.monotonic() - self._first_at
            self._open.set()

    def close(self):
        """After the rules are gone: nothing more comes, and nothing that came is left behind."""
        if self._thread is not None:
            self.let_go()
            time.sleep(0.03)
            end = time.monotonic() + 1.0
            while self._waiting and time.monotonic() < end:
                time.sleep(0.005)
            self._done.set()
            self._thread.join(2.0)
            if self.held:
                # Those, too, whose message this program has missed.
                self._accept(self._last + MAX_PACKETS)
        self._socket.close()


def _attribute(kind, value):
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _packets(content):
    """Numbers of the packets that the messages tell of, in the order of their coming."""
    at = 0
    while at + 16 <= len(content):
        length, kind = struct.unpack_from("=IH", content, at)
        if length < 16:
            return
        if kind == (_QUEUE_SUBSYSTEM << 8 | _PACKET):
            inner = at + 20
            while inner + 4 <= at + length:
                size, name = struct.unpack_from("=HH", content, inner)
                if name & 0x7FFF == 1:
                    yield struct.unpack_from(">I", content, inner + 4)[0]
                    break
                if size < 4:
                    break
                inner += (size + 3) & ~3
        at += (length + 3) & ~3


def has_packets(host):
    """Not where a scratch folder plays the VM: the packets would be those of the machine that it lies on."""
    return not host.scratch or getattr(host, "plays_packets", False)


def usable(host):
    """Whether a queue can be had and there is a program to send packets to it. Changes nothing."""
    if not has_packets(host) or not host.has_program("iptables"):
        return False
    try:
        Queue().close()
    except NotHeld:
        return False
    return True


# ------------------------------------------------------------------------------------------ the rules


def guest_interfaces(host, vm_type):
    """Interfaces of guest networks: from what CloudStack has told this VM (4.21 ips.json), else by the type."""
    found = sorted(_guests(host))
    if not found and vm_type in GUEST_NIC and cmdline_words(host).get("type") == vm_type:
        found = [GUEST_NIC[vm_type]]
    return found


def guest_addresses(host):
    """The VM's own address in each of its guest networks, as far as CloudStack has told it."""
    entries = [entry for _, some in sorted(_guests(host).items()) for entry in some]
    return [str(entry["public_ip"]) for entry in entries if entry.get("public_ip")]


def _guests(host):
    """{interface: entries of ips.json about guest networks}."""
    try:
        told = json.loads(host.text("/etc/cloudstack/ips.json") or "{}")
        rows = [(name, entries) for name, entries in told.items() if isinstance(entries, list)]
    except (ValueError, AttributeError):
        return {}
    found = dict((name, [entry for entry in entries if _is_guest(entry)]) for name, entries in rows)
    return dict((name, entries) for name, entries in found.items() if entries and re.match(r"^eth[0-9]+$", name))


def _is_guest(entry):
    return isinstance(entry, dict) and entry.get("nw_type") == "guest" and entry.get("add") is not False


def speaks_ipv6(host, interfaces):
    """Whether one of the interfaces has an IPv6 address, be it a link-local one."""
    lines = (host.proc("net/if_inet6") or "").splitlines()
    return any(line.split()[-1:] == [name] for line in lines for name in interfaces)


def ports_of(host, held):
    """Ports of one entry of the order (order_words.py `HeldPorts`), those of an haproxy configuration included."""
    ports = set(held["ports"])
    if held.get("binds"):
        for line in (host.text(held["binds"]) or "").splitlines():
            words = line.split()
            if len(words) >= 2 and words[0] == "bind":
                ports.update(int(port) for port in re.findall(r":([0-9]{1,5})(?:,|$)", words[1]))
    return sorted(ports)


def rules(host, held, queue):
    """Rules of the chain: udp as it comes, tcp only what opens a connection."""
    made = []
    for entry in held:
        ports = ports_of(host, entry)
        for start in range(0, len(ports), 15):
            some = ",".join(str(port) for port in ports[start : start + 15])
            rule = ["-p", entry["protocol"]] + (["--syn"] if entry["protocol"] == "tcp" else [])
            rule += ["-m", "multiport", "--dports", some, "-j", "NFQUEUE", "--queue-num", str(queue), "--queue-bypass"]
            made.append(rule)
    return made


class Hold(object):
    """Holds what asks for one unit. `enter` raises `NotHeld`, then nothing is left behind."""

    def __init__(self, host, journal, unit, held, vm_type):
        self.host = host
        self.journal = journal
        self.unit = unit
        self.held = held
        self.vm_type = vm_type
        self.queue = None
        self.seconds = 0.0
        self._began = None

    def enter(self):
        if not has_packets(self.host):
            raise NotHeld("this is a folder and no machine")
        interfaces = guest_interfaces(self.host, self.vm_type)
        if not interfaces:
            raise NotHeld("which interfaces are the guests' is not known")
        self.queue = Queue()
        # On the disk before the first rule: whoever comes after a crash knows that there is something to remove.
        self.journal.add("hold", unit=self.unit, state="start")
        try:
            made = rules(self.host, self.held, self.queue.number)
            self._prepare("iptables", made)
            inside = ["iptables"]
            if speaks_ipv6(self.host, interfaces):
                try:
                    self._prepare("ip6tables", made)
                    inside.append("ip6tables")
                except NotHeld as reason:
                    text = "requests of {0} over IPv6 do not wait: {1}".format(self.unit, reason)
                    self.journal.add("note", text=text[:500])
            self.queue.keep(LIMIT_SECONDS)
            self._began = time.monotonic()
            for program in inside:
                for interface in interfaces:
                    self._run(program, ["-I", "INPUT", "-i", interface, "-j", CHAIN])
        except NotHeld:
            self.leave()
            raise

    @property
    def is_over(self):
        """Its time is up: nothing waits any longer."""
        return self._began is None or time.monotonic() - self._began >= LIMIT_SECONDS

    def _prepare(self, program, made):
        """The chain, which nothing leads into yet."""
        self._run(program, ["-N", CHAIN])
        for rule in made:
            self._run(program, ["-A", CHAIN] + rule)

    def leave(self):
        """Everything goes on; rules and chain are removed, also from what was saved meanwhile."""
        if self.queue is None:
            return
        self.queue.let_go()
        if self._began is not None:
            self.seconds = min(LIMIT_SECONDS, time.monotonic() - self._began)
        remove(self.host)
        self.queue.close()
        count, longest = self.queue.held, round(self.queue.longest, 3)
        self.queue = None
        self.journal.add("hold", unit=self.unit, state="done", held=count, longest=longest)
        if count:
            text = "{0}: {1} packets waited for its restart, the longest {2:.3f} s"
            self.journal.add("note", text=text.format(self.unit, count, longest))

    def _run(self, program, words):
        done = self.host.run([program, "-w", "2", "-t", "mangle"] + words, 5.0)
        if not done.ok:
            raise NotHeld(done.sentence())


# ------------------------------------------------------------------------------------------ after a crash


def clean(host, journal):
    """Remove what a killed program left, if the journal says that there may be something."""
    state = None
    for record in journal.records:
        if record["kind"] == "hold":
            state = record["state"]
    if state != "start":
        return
    remove(host)
    try:
        journal.add("hold", unit="", state="removed")
    except OSError:
        # A full journal: the next one who comes removes what is no longer there, which is harmless.
        pass


def remove(host):
    """The chain, the ways into it, and both in saved rules. Harmless where there is nothing."""
    if has_packets(host):
        for program in FAMILIES:
            _remove_chain(host, [program, "-w", "2", "-t", "mangle"])
    for path in SAVED_RULES:
        _remove_saved(host, path)


def _remove_chain(host, table):
    listed = host.run(table + ["-S"], 5.0, merged=False)
    for line in listed.output.splitlines():
        words = line.split()
        if words[:1] == ["-A"] and words[1:2] != [CHAIN] and words[-1:] == [CHAIN]:
            host.run(table + ["-D"] + words[1:], 5.0)
    if "-N " + CHAIN in listed.output:
        host.run(table + ["-F", CHAIN], 5.0)
        host.run(table + ["-X", CHAIN], 5.0)


def _remove_saved(host, path):
    """CloudStack saves the rules that it finds, ours too, and loads them at the next boot."""
    text = host.text(path)
    if text is None or CHAIN not in text:
        return
    real = host.resolve(path)
    try:
        mode = os.stat(real).st_mode & 0o7777
        files.replace_with(real, without_hold(text).encode("utf-8"), mode)
    except OSError:
        # A full disk: rules that send to a queue without a reader let everything through, so this can wait.
        pass


def without_hold(text):
    """Saved rules, of iptables-save or nft, without ours."""
    kept = []
    inside = False
    for line in text.splitlines(True):
        if inside:
            inside = line.strip() != "}"
        elif re.match(r"^\s*chain {0} \{{".format(CHAIN), line):
            inside = True
        elif CHAIN not in line:
            kept.append(line)
    return "".join(kept)
