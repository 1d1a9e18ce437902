#!/usr/bin/python
"""The gateways answer a ping."""

import subprocess

from utility.sharedFunctions import called_for, finish, getHealthChecksData


def answers(address):
    for _ in range(3):
        if (
            subprocess.run(
                ["ping", "-c", "1", "-W", "1", address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            ).returncode
            == 0
        ):
            return True
    return False


def main():
    gateways = (getHealthChecksData("gateways") or {}).get("gatewaysIps", "").split()
    finish(["no answer from " + gateway for gateway in gateways if not answers(gateway)], "All gateways answer")


if __name__ == "__main__" and called_for("basic"):
    main()
