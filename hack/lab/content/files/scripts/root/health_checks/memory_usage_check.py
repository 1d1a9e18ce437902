#!/usr/bin/python
"""Memory use stays below the threshold."""

from utility.sharedFunctions import called_for, finish, getHealthChecksData, text_of


def main():
    limit = float((getHealthChecksData("systemThresholds") or {}).get("maxMemoryUsage", 100))
    facts = dict(line.split(":") for line in text_of("/proc/meminfo").splitlines())
    total, free = (float(facts[key].split()[0]) for key in ("MemTotal", "MemAvailable"))
    used = 100.0 * (total - free) / total
    finish(
        ["memory usage %.0f%% is above %.0f%%" % (used, limit)] if used > limit else [], "Memory usage within limits"
    )


if __name__ == "__main__" and called_for("advanced"):
    main()
