#!/usr/bin/python
"""Port forwarding rules are in the nat table."""

import subprocess

from utility.sharedFunctions import called_for, finish, getHealthChecksData


def main():
    rules = getHealthChecksData("portForwarding") or []
    done = subprocess.run(["iptables-save", "-t", "nat"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    missing = [
        rule for rule in rules if "--to-destination %s:%s" % (rule["destIp"], rule["destPort"]) not in done.stdout
    ]
    finish(
        ["no forwarding to %s:%s" % (rule["destIp"], rule["destPort"]) for rule in missing],
        "All forwarding rules are there",
    )


if __name__ == "__main__" and called_for("advanced"):
    main()
