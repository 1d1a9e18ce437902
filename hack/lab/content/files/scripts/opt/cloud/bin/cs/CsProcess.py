"""Processes by name, for what systemd does not know."""

from cs import CsHelper


class CsProcess:
    def __init__(self, *pattern):
        self.pattern = pattern

    def pids(self):
        _, text = CsHelper.execute("pgrep", "-f", " ".join(self.pattern))
        return [int(word) for word in text.split() if word.isdigit()]
