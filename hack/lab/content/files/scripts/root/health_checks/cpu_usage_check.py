#!/usr/bin/python
"""CPU use over a second stays below the threshold."""

import time

from utility.sharedFunctions import called_for, finish, getHealthChecksData


def times():
    with open("/proc/stat", encoding="ascii") as source:
        fields = [int(word) for word in source.readline().split()[1:]]
    return fields[3] + fields[4], sum(fields)


def main():
    limit = float((getHealthChecksData("systemThresholds") or {}).get("maxCpuUsage", 100))
    idle, total = times()
    time.sleep(0.2)
    later_idle, later_total = times()
    spent = later_total - total
    used = 100.0 * (spent - (later_idle - idle)) / spent if spent else 0.0
    finish(["CPU usage %.0f%% is above %.0f%%" % (used, limit)] if used > limit else [], "CPU usage within limits")


if __name__ == "__main__" and called_for("advanced"):
    main()
