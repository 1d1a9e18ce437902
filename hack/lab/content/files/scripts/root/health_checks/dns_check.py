#!/usr/bin/python
"""Every expected machine has its name in the hosts file that dnsmasq reads."""

from utility.sharedFunctions import called_for, finish, getHealthChecksData, text_of


def main():
    known = {tuple(line.split()[:2]) for line in text_of("/etc/hosts").splitlines() if line.strip()}
    missing = [
        vm["vmName"] for vm in getHealthChecksData("virtualMachines") or [] if (vm["ip"], vm["vmName"]) not in known
    ]
    finish(["no name for " + name for name in missing], "All names are there")


if __name__ == "__main__" and called_for("advanced"):
    main()
