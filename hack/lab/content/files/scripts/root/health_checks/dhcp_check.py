#!/usr/bin/python
"""Every expected machine is in the DHCP hosts file."""

from utility.sharedFunctions import called_for, finish, getHealthChecksData, text_of


def main():
    known = {tuple(line.split(",")[:2]) for line in text_of("/etc/dhcphosts.txt").splitlines()}
    missing = [
        vm["vmName"] for vm in getHealthChecksData("virtualMachines") or [] if (vm["macAddress"], vm["ip"]) not in known
    ]
    finish(["no DHCP entry for " + name for name in missing], "All DHCP entries are there")


if __name__ == "__main__" and called_for("advanced"):
    main()
