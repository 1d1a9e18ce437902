"""systemctl and systemd-run for a scratch VM. Also a script: the same behaviour for the program in its own process.

A unit that `needs` a file dies when it is (re)started or reloaded while that file says `broken`, and starts again and
again while it says `unstable`. A unit that `plays` a list of states shows one more of them at every look.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys


def _path(root: str, unit: str) -> str:
    return os.path.join(root, ".systemd", unit.replace(".service", "") + ".json")


def load(root: str, unit: str) -> dict:
    try:
        with open(_path(root, unit)) as file:
            return json.load(file)
    except FileNotFoundError:
        return {"active": "inactive", "pid": 0, "restarts": 0, "needs": None, "load": "not-found", "done": []}


def save(root: str, unit: str, state: dict) -> None:
    os.makedirs(os.path.join(root, ".systemd"), exist_ok=True)
    with open(_path(root, unit) + ".new", "w") as file:
        json.dump(state, file)
    os.rename(_path(root, unit) + ".new", _path(root, unit))


def install(root: str, unit: str, *, active: bool) -> None:
    state = {"active": "active" if active else "inactive", "pid": 100 if active else 0}
    save(root, unit, {**state, "restarts": 0, "needs": None, "load": "loaded", "done": []})


def needs(root: str, unit: str, path: str) -> None:
    state = {**load(root, unit), "needs": path}
    save(root, unit, {**state, "runs": _needed(root, state)})


def runs_with(root: str, unit: str) -> str:
    """The text that an active unit took its file for when it was last started or reloaded."""
    return load(root, unit).get("runs", "")


def _needed(root: str, state: dict) -> str:
    if not state["needs"] or not os.path.exists(os.path.join(root, state["needs"])):
        return ""
    with open(os.path.join(root, state["needs"])) as file:
        return file.read()


def plays(root: str, unit: str, states: list[dict]) -> None:
    """What `show` says from now on, one state a look; the last one stays."""
    save(root, unit, {**load(root, unit), "plays": states})


def systemctl(root: str, argv: list[str]) -> tuple[int, str]:
    verb, units = argv[0], [word for word in argv[1:] if not word.startswith("-")]
    if verb == "show":
        return 0, "\n\n".join(_show(root, unit) for unit in units) + "\n"
    if verb in ("reset-failed", "daemon-reload"):
        state = load(root, "systemd")
        save(root, "systemd", {**state, "done": [*state["done"], verb]})
        return 0, ""
    state = load(root, units[0])
    state["done"].append(verb)
    cuts = os.path.join(root, ".systemd", "cuts-connections")
    if verb == "stop" and os.path.exists(cuts):
        os.unlink(os.path.join(root, "proc/net/tcp"))
        os.unlink(cuts)
    if verb == "stop":
        state.update(active="inactive", pid=0)
    elif verb == "reload" and state["active"] != "active":
        return 1, "Unit is not active, cannot be reloaded."
    else:
        text = _needed(root, state)
        if "broken" in text:
            state.update(active="failed", pid=0)
        else:
            pid = state["pid"] if verb == "reload" else state["pid"] + 1
            state.update(active="active", pid=pid, unstable="unstable" in text, runs=text)
    save(root, units[0], state)
    return (1, f"Job for {units[0]} failed.") if state["active"] == "failed" else (0, "")


def _show(root: str, unit: str) -> str:
    state = load(root, unit)
    if state.get("unstable"):
        state.update(restarts=state["restarts"] + 1, pid=state["pid"] + 1)
        save(root, unit, state)
    if state.get("plays"):
        shown = state["plays"][0]
        if len(state["plays"]) > 1:
            save(root, unit, {**state, "plays": state["plays"][1:]})
        state = {**state, **shown}
    return (
        f"Id={unit}.service\nLoadState={state['load']}\nActiveState={state['active']}\n"
        f"SubState={state.get('sub', 'running')}\nUnitFileState=enabled\nMainPID={state['pid']}\n"
        f"NRestarts={state['restarts']}\nResult=success\nActiveEnterTimestampMonotonic={state.get('since', 1)}"
    )


def main() -> int:
    root, program, arguments = sys.argv[1], sys.argv[2], sys.argv[3:]
    if program == "systemd-run":
        if "--property=MemoryMax=64M" in arguments and os.path.exists(os.path.join(root, ".systemd/no-memory-max")):
            print("Cannot set property MemoryMax, or unknown property.", file=sys.stderr)
            return 1
        command = arguments[next(i for i, word in enumerate(arguments) if not word.startswith("-")) :]
        subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return 0
    code, output = systemctl(root, arguments)
    print(output)
    return code


if __name__ == "__main__":
    sys.exit(main())
