"""Rules: missing ones are added, ones that nobody asked for are deleted, the result is saved for the next boot."""

import re

from cs import CsHelper
from cs.CsRule import CsRule


def _normal(words):
    return re.sub(r"\s+", " ", words.replace("/32 ", " ")).strip()


class CsNetfilters:
    def __init__(self, config):
        self.config = config
        self.wanted = []

    def add(self, table, words):
        self.wanted.append(CsRule(table, _normal(words)))

    def _standard(self):
        """Rules of the packaged template of this type are never deleted."""
        kind, table = self.config.type(), "filter"
        try:
            lines = open("/etc/iptables/iptables-" + kind, encoding="utf-8").read().splitlines()
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            if line.startswith("*"):
                table = line[1:].strip()
            elif line.startswith("-A "):
                found.append(CsRule(table, _normal(line)))
        return found

    def _present(self):
        code, text = CsHelper.execute("iptables-save")
        table, found = "filter", []
        for line in text.splitlines() if code == 0 else ():
            if line.startswith("*"):
                table = line[1:].strip()
            elif line.startswith("-A "):
                found.append(CsRule(table, _normal(line)))
        return found

    def compare(self):
        present = self._present()
        keep = set(self._standard()) | set(self.wanted)
        for rule in self.wanted:
            if rule not in present:
                CsHelper.execute("iptables", "-w", "-t", rule.table, *rule.words.split())
        for rule in present:
            if rule not in keep and rule.table in ("filter", "nat") and not rule.words.startswith("-A INPUT"):
                CsHelper.execute("iptables", "-w", "-t", rule.table, "-D", *rule.words.split()[1:])
        code, text = CsHelper.execute("iptables-save")
        if code == 0:
            with open("/etc/iptables/rules.v4", "w", encoding="utf-8") as target:
                target.write(text)
