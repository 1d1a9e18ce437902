#!/usr/bin/python
"""Free space on the root file system stays above the threshold."""

import os

from utility.sharedFunctions import called_for, finish, getHealthChecksData


def main():
    least = float((getHealthChecksData("systemThresholds") or {}).get("minDiskNeeded", 100))
    status = os.statvfs("/")
    free = status.f_bavail * status.f_frsize / 2.0**20
    finish(["only %.0f MB free, %.0f wanted" % (free, least)] if free < least else [], "Sufficient free space is there")


if __name__ == "__main__" and called_for("basic"):
    main()
