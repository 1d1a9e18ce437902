"""The log of a scenario: one line for everything that a person would want to know, and none for the rest.

Lines are what golden files hold, so they say nothing that depends on the order of equals: uids, digests and operation
ids stay out.
"""

import re
from collections.abc import Mapping
from typing import Any

from sim.loop import now
from sysvm.engine.resources import APPROVAL, ENDPOINT, POLICY, ROLLOUT, SYSTEM_VM
from sysvm.kube.objects import Object, ObjectRef, Resource

_HEX = re.compile(r"\b(sha256:)?[0-9a-f]{8,64}\b")
_ROLLOUT = re.compile(r"-[0-9a-f]{8}-(\d+)\b")


class Narrator:
    """Listens to the server and keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.events: list[tuple[str, str]] = []

    def say(self, who: str, what: str) -> None:
        moment = now()
        self.lines.append(f"{moment:%a %H:%M:%S}  {who:<12} {_plain(what)}")

    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    def event(self, about: ObjectRef, type_: str, reason: str, note: str) -> None:
        self.events.append((reason, note))
        if type_ == "Warning":
            self.say(_short(about.name), f"! {reason}: {note}")

    def saw(self, resource: Resource, before: Object | None, after: Object | None) -> None:
        """A listener of the server."""
        if resource == ROLLOUT:
            self._rollout(before, after)
        elif resource == SYSTEM_VM:
            self._vm(before, after)
        elif resource in (POLICY, APPROVAL):
            self._ready(before, after)
        elif resource == ENDPOINT and before is None:
            self.say(after["metadata"]["name"] if after else "", "endpoint made")

    def _rollout(self, before: Object | None, after: Object | None) -> None:
        if after is None:
            self.say(_short((before or {})["metadata"]["name"]), "is gone")
            return
        name, old, new = _short(after["metadata"]["name"]), _status(before), _status(after)
        if before is None:
            self.say(name, f"rollout made, cause {after['spec'].get('cause', 'NewRevision')}")
        waves = {wave["name"]: wave for wave in old.get("waves", ())}
        for wave in new.get("waves", ()):
            last = waves.get(wave["name"], {})
            if wave.get("phase", "Waiting") != last.get("phase", "Waiting"):
                counts = ", ".join(
                    f"{wave[what]} {what}" for what in ("done", "failed", "skipped", "returned") if wave.get(what)
                )
                told = f"wave {wave['name']}: {wave['phase']}" + (f" ({counts})" if counts else "")
                self.say(name, told)
        if new.get("result") != old.get("result"):
            self.say(name, f"ends {new.get('result')}, {new.get('summary', '')}")
        else:
            self._told(name, before, after)

    def _vm(self, before: Object | None, after: Object | None) -> None:
        if after is None or before is None:
            return
        name = _vm_name(after)
        order, last = after["spec"].get("operation"), before["spec"].get("operation")
        if order and order != last:
            attempt = f", attempt {order['attempt']}" if order.get("attempt", 1) > 1 else ""
            what = "back to what it was" if order.get("takesBack") else f"{order['method']}{attempt}"
            self.say(name, f"<- {_short(order['rollout'])}: {what}")
        if last and not order:
            self.say(name, f"-> {_short(last['rollout'])}: withdrawn")
        operation, former = _status(after).get("operation") or {}, _status(before).get("operation") or {}
        if operation.get("result") and (operation.get("id"), operation.get("result")) != (
            former.get("id"),
            former.get("result"),
        ):
            why = f": {operation['reason']}" if operation.get("reason") else ""
            self.say(name, f"   {operation['result']}{why}")

    def _ready(self, before: Object | None, after: Object | None) -> None:
        if after is None:
            self.say(_short((before or {})["metadata"]["name"]), "is gone")
            return
        self._told(_short(after["metadata"]["name"]), before, after)

    def _told(self, name: str, before: Object | None, after: Object) -> None:
        """A condition Ready with another reason; numbers in its message are not news."""
        old, new = _condition(before), _condition(after)
        if not new or (new["reason"], new["status"]) == (old.get("reason"), old.get("status")):
            return
        if new["reason"] == "Pending":
            return
        self.say(name, f"{new['reason']}: {new.get('message', '')}")


def _status(obj: Mapping[str, Any] | None) -> dict[str, Any]:
    return dict((obj or {}).get("status") or {})


def _condition(obj: Mapping[str, Any] | None) -> dict[str, Any]:
    for condition in _status(obj).get("conditions", ()):
        if condition["type"] == "Ready":
            return dict(condition)
    return {}


def _vm_name(vm: Object) -> str:
    identity = _status(vm).get("identity") or {}
    return str(identity.get("name") or vm["metadata"]["name"])


def _short(name: str) -> str:
    """`routers-8c1f03ab-2` is `routers#2`."""
    return _ROLLOUT.sub(r"#\1", name)


def _plain(text: str) -> str:
    return _HEX.sub("<id>", _ROLLOUT.sub(r"#\1", text))
