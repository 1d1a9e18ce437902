"""What the VM's kernel does for tenants: forwarding, address translation, firewall, routes.

No patch has a reason to change any of it, and no action on a service may do it by the way. So it is looked at before
the fence and after the last action, and what was there and is gone fails the patch. Not compared is what lives by
itself (counters, elements of sets, routes of a routing daemon), and of a pair the routes, which go with the role. What
CloudStack pushes meanwhile is its own: its data bags tell. What came in addition is told and is no failure, because an
agent that starts adds rules of its own.
"""

import os
import re
import time
from collections import Counter

from . import actors, fence, hold
from .failures import Failure
from .host import cmdline_words, tail

BAGS = "/etc/cloudstack"
AGAIN_SECONDS = 5.0
"""CloudStack empties chains before it fills them again (CloudStack 4.21 CsNetfilter.py): that is no loss of ours."""
FORWARDING = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")
OURS = (hold.CHAIN, fence.TABLE)
OF_IPTABLES = ("filter", "nat", "mangle", "raw", "security")
LEARNED = re.compile(r"\bproto (bgp|ospf|rip|isis|babel|zebra|ra|dhcp|redirect)\b|\bcache\b")
PASSING = re.compile(r"\s+(expires \d+sec|linkdown|dead|error -?\d+|users \d+|age \d+sec)\b")
TOLD = 3


class Core(object):
    """The facts of one moment; a part that cannot be asked for is None and is not compared."""

    def __init__(self, forwarding, rules, routes, bags):
        self.forwarding = forwarding
        self.rules = rules
        self.routes = routes
        self.bags = bags

    def sentence(self):
        parts = []
        if self.rules is not None:
            parts.append("{0} rules".format(sum(self.rules.values())))
        if self.routes is not None:
            parts.append("{0} routes".format(sum(self.routes.values())))
        return "forwarding, {0} as before".format(" and ".join(parts)) if parts else "forwarding as before"

    def gone(self, now):
        """What is there no longer, as phrases."""
        found = ["{0} was {1}, is {2}".format(name, was, now.forwarding[name]) for name, was in self._switched_off(now)]
        for before, after, what in self._counted(now):
            lost = before - after
            if lost:
                found.append(_told(lost, what))
        return found

    def added(self, now):
        return [_told(after - before, what) for before, after, what in self._counted(now) if after - before]

    def _switched_off(self, now):
        off = [(name, was) for name, was in sorted(self.forwarding.items()) if was != now.forwarding[name]]
        return [(name, was) for name, was in off if was != "0"]

    def _counted(self, now):
        pairs = [(self.rules, now.rules, "rules"), (self.routes, now.routes, "routes")]
        return [pair for pair in pairs if pair[0] is not None and pair[1] is not None]


def look(host):
    """The `Core` of now; None where a folder plays the VM: the rules would be those of the machine it lies on."""
    if not hold.has_packets(host):
        return None
    forwarding = dict((name, (host.proc("sys/" + name) or "").strip()) for name in FORWARDING)
    redundant = cmdline_words(host).get("redundant_router", "").lower() in ("true", "1", "yes")
    return Core(forwarding, _rules(host), None if redundant else _routes(host), _bags(host))


class Watch(object):
    """The core of one operation, from the fence to its end. Lives in one process: a restart goes back anyway."""

    def __init__(self, host, journal):
        self.host = host
        self.journal = journal
        self.before = None

    def begin(self):
        self.before = look(self.host)

    def verify(self, excused):
        """A sentence; raises `Failure` where something is gone that nobody else took. `excused`: CloudStack was asked
        to set it up anew."""
        if self.before is None:
            return ""
        gone, added, pushed = self._since()
        if added:
            self._note("the kernel has more than before: " + "; ".join(added))
        if not gone:
            return self.before.sentence()
        said = "the kernel has no longer what it had: " + "; ".join(gone)
        if not excused and not pushed:
            raise Failure("VerifyFailed", said, False)
        self._note(said + "; CloudStack has set it up meanwhile")
        return ""

    def tell_back(self):
        """Going back restores files and services; what the kernel has lost only CloudStack can send again."""
        if self.before is None:
            return
        gone, _, pushed = self._since()
        if gone and not pushed:
            said = "the kernel still lacks what it had: {0}; restart the network without cleanup: that sends it again"
            self._note(said.format("; ".join(gone)))

    def _since(self):
        """(phrases of what is gone, phrases of what came, whether CloudStack has pushed meanwhile). What is gone is
        looked for again for a few seconds."""
        end = time.monotonic() + AGAIN_SECONDS
        while True:
            now = look(self.host)
            gone = self.before.gone(now)
            if not gone or time.monotonic() >= end:
                return gone, self.before.added(now), now.bags != self.before.bags or bool(actors.commands(self.host))
            self.host.wait(0.5)

    def _note(self, text):
        self.journal.add("note", text=tail(text, 500))


def _told(lines, what):
    some = "; ".join(sorted(lines)[:TOLD])
    return "{0} {1} ({2})".format(sum(lines.values()), what, some[:400])


def _bags(host):
    """Marks of the data bags: each push writes one."""
    folder = host.resolve(BAGS)
    found = []
    try:
        for name in sorted(os.listdir(folder)):
            facts = os.stat(os.path.join(folder, name))
            found.append((name, facts.st_mtime, facts.st_size))
    except OSError:
        pass
    return found


def _rules(host):
    """Every rule with its table, from iptables, ip6tables and tables of nft's own; None if none of them answers."""
    found = Counter()
    answered = False
    for program in ("iptables-save", "ip6tables-save"):
        done = host.run([program], 10.0, merged=False)
        if done.ok:
            answered = True
            found.update(saved(program.partition("-")[0], done.output))
    done = host.run(["nft", "-s", "list", "ruleset"], 10.0, merged=False)
    if done.ok:
        answered = True
        found.update(listed(done.output))
    return found if answered else None


def saved(program, text):
    """Rules and policies in the output of iptables-save, without counters and without ours."""
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":"):
            name, policy = (line[1:].split() + ["", ""])[:2]
            if name not in OURS and policy != "ACCEPT":
                yield "{0} {1} {2} {3}".format(program, table, name, policy)
        elif line.startswith("-A") and not any(word in line for word in OURS):
            yield "{0} {1} {2}".format(program, table, line)


def listed(text):
    """Rules in the output of `nft list ruleset`, but for tables that iptables answers for, and for ours."""
    table = block = None
    elements = False
    for line in text.splitlines():
        words = line.split()
        if not words or words[0] == "#":
            continue
        if elements:
            elements = "}" not in line
        elif words[0] == "table":
            table, block = words[1:3], None
        elif words == ["}"]:
            table, block = (table, None) if block else (None, None)
        elif words[-1] == "{" and block is None:
            block = " ".join(words[:-1])
        elif words[:2] == ["elements", "="]:
            elements = "}" not in line
        elif table and not (table[0] in ("ip", "ip6") and table[1] in OF_IPTABLES) and table[1] not in OURS:
            yield " ".join(["nft"] + table + [block or ""] + words)


def _routes(host):
    found = Counter()
    for family in ("-4", "-6"):
        done = host.run(["ip", "-o", family, "route", "show", "table", "all"], 10.0, merged=False)
        if not done.ok and family == "-4":
            return None
        if done.ok:
            found.update(routes(done.output))
    return found


def routes(text):
    """Routes that somebody set, or that came with an address."""
    for line in text.splitlines():
        if line.strip() and not LEARNED.search(line):
            yield " ".join(PASSING.sub("", line).split())
