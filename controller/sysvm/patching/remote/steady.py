"""Which units stand still: only those may decide whether a patch was good.

A unit that is started again and again shows `active` at one look and `activating` at the next. Taken for a gate it
turns a good patch into a rollback, and a good way back into an inconsistent VM, though nobody touched it.
"""

import time

LONG_SECONDS = 60.0
SAMPLE_SECONDS = 1.0
PROPERTIES = ("Id", "ActiveState", "SubState", "MainPID", "NRestarts", "ActiveEnterTimestampMonotonic")


def unsteady(host, units):
    """Those of `units` that were restarting by themselves, sorted. Waits a second if one of them is active only since
    less than a minute; systemd's own count of automatic restarts starts anew when somebody starts the unit."""
    if not units:
        return []
    first = _look(host, units)
    found = set(unit for unit in units if _restarting(first[unit]))
    young = [unit for unit in units if unit not in found and first[unit]["active"] and not _old(first[unit])]
    if young:
        host.wait(SAMPLE_SECONDS)
        second = _look(host, young)
        found.update(unit for unit in young if second[unit] != first[unit])
    return sorted(found)


def _restarting(state):
    if state["changing"]:
        return True
    return state["active"] and state["restarts"] > 0 and not _old(state)


def _old(state):
    return state["since"] > 0 and time.monotonic() - state["since"] >= LONG_SECONDS


def _look(host, units):
    argv = ["systemctl", "show", "--no-pager", "--property=" + ",".join(PROPERTIES), "--"]
    done = host.run(argv + list(units), 15.0, merged=False)
    blocks = [block for block in done.output.split("\n\n") if block.strip()]
    found = {}
    for unit, block in zip(units, blocks + [""] * (len(units) - len(blocks))):  # noqa: B905
        values = dict(line.partition("=")[::2] for line in block.splitlines())
        active = values.get("ActiveState", "")
        found[unit] = {
            "active": active in ("active", "reloading"),
            "changing": active in ("activating", "deactivating") or values.get("SubState") == "auto-restart",
            "pid": _number(values.get("MainPID")),
            "restarts": _number(values.get("NRestarts")),
            # Of the same clock as time.monotonic, in microseconds
            "since": _number(values.get("ActiveEnterTimestampMonotonic")) / 1e6,
        }
    return found


def _number(text):
    return int(text) if text and text.isdigit() else 0
