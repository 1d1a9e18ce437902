"""Acting on the units of a router of a redundant pair: a role is never lost by accident.

CloudStack 4.21 CsRedundant.py starts some services with the role PRIMARY and stops them with BACKUP. So what was
active before proves nothing for a router that has become BACKUP meanwhile, and starting such a service there would give
a guest network two DHCP servers.
"""

import time

from . import conntrackd, redundancy, services
from .failures import Failure
from .journal import Wait

STABLE_ADVERTS = 3
LOOK_EVERY = 1.0
CLEAR_SECONDS = 15.0
"""A failover that happens by itself is over by then."""


class PairServices(services.Services):
    """The units of one order; of a router that is alone the same as `Services`."""

    @staticmethod
    def measure(host, order):
        baseline = services.Services.measure(host, order)
        if _is_paired(order):
            baseline["holds_gateway"] = redundancy.holds_gateway(host)
            baseline["role"], _ = redundancy.role_of(redundancy.sample(host))
        return baseline

    def was_active(self, service):
        """Of what follows the role: only while this router has it."""
        if service.get("follows_role") and not redundancy.holds_gateway(self.host):
            return False
        return super(PairServices, self).was_active(service)

    def became_backup(self):
        """It had the gateway when this began, and has it no longer."""
        return bool(self.baseline.get("holds_gateway")) and not redundancy.holds_gateway(self.host)

    def verify_role(self):
        """A router that had a role before has one after: the same, or the one that a failover has left it with."""
        end = time.monotonic() + CLEAR_SECONDS
        while self.baseline.get("role") is not None:
            one = self.sample()
            role, problem = redundancy.role_of(one)
            if role is not None:
                return
            if time.monotonic() >= end:
                raise Failure(reason_of(one), "it was {0} before: {1}".format(self.baseline["role"], problem), False)
            self.host.wait(LOOK_EVERY)

    def _act(self, service, action, back):
        pair = service.get("pair")
        if pair is None or action == "stop":
            super(PairServices, self)._act(service, action, back)
            return
        unit = services_name(service)
        if unit == "keepalived" and action != "reload" and not back:
            self.refuse_failover(pair)
        since = time.time()
        super(PairServices, self)._act(service, action, back)
        if action == "reload":
            return
        if unit == conntrackd.UNIT:
            resynchronise(self.host)
        try:
            role = self.await_role(service, since)
        except Failure as failure:
            if not back:
                raise
            # Old files are right whatever the pair does, and a role is no file: it is told, not taken for inconsistent.
            self.note(failure.message)
            return
        self.note("this router is {0} and nothing contradicts it, after {1}".format(role, unit))

    def sample(self):
        """The facts of now. A conntrackd that the notify script has killed as it started does not stay dead."""
        one = redundancy.sample(self.host)
        if one["conntrackd_active"] or not any(map(self.unblock, self.order["services"])):
            return one
        resynchronise(self.host)
        return redundancy.sample(self.host)

    def unblock(self, service):
        """conntrackd is started again where it ran before and only the lock file of a killed one is in its way."""
        if services_name(service) != conntrackd.UNIT or not self.was_active(service):
            return False
        said = conntrackd.unblock(self.host)
        if said:
            self.seen.pop(service["unit"], None)
            self.note(said)
        return said is not None

    def await_role(self, service, since):
        """Wait for one role that nothing contradicts, and until it has held for three adverts and `stable_seconds`.

        Returns it. Raises `Failure` if no role begins within `wait_seconds`, or none lasts, with the last words, since
        a time, of the unit that is in its way.
        """
        pair = service["pair"]
        advert, _ = redundancy.settings(self.host)
        stable = STABLE_ADVERTS * advert + pair["stable_seconds"]
        end = time.monotonic() + pair["wait_seconds"]
        role = began = None
        problem = "its role was not seen"
        what = "a role that lasts after the restart of {0}".format(services_name(service))
        wait = Wait(self.journal, what, pair["wait_seconds"] + stable)
        while True:
            wait.goes_on()
            one = self.sample()
            now, contradiction = redundancy.role_of(one)
            at = time.monotonic()
            problem = contradiction or problem
            if now != role:
                role, began = now, at
            if role is not None and at - began >= stable:
                return role
            if at >= (end if role is None else end + stable):
                text = "after the restart of {0} the router has no role that lasts: {1}"
                unit = services_name(service) if one["conntrackd_active"] else conntrackd.UNIT
                said = self.explain(unit, text.format(services_name(service), problem), since)
                raise Failure(reason_of(one), said, False)
            self.host.wait(min(LOOK_EVERY, pair["wait_seconds"] or LOOK_EVERY))

    def refuse_failover(self, pair):
        if not pair["may_fail_over"] and redundancy.holds_gateway(self.host):
            text = "this router has the gateway, so a restart of keepalived is a failover, and plannedFailover is Never"
            raise Failure("FailoverNotAllowed", text, False)


def services_name(service):
    unit = service["unit"]
    return unit[: -len(".service")] if unit.endswith(".service") else unit


def _is_paired(order):
    return any(service.get("pair") or service.get("follows_role") for service in order["services"])


def resynchronise(host):
    """What a conntrackd that was restarted has forgotten: its own table is sent again, the other's asked for.

    The same commands as CloudStack 4.21 CsRedundant.py set_primary; a BACKUP asks the other router instead.
    """
    options = ("-R", "-B") if redundancy.holds_gateway(host) else ("-n",)
    for option in options:
        host.run(["conntrackd", option], 10.0)


def reason_of(one):
    """Who else answers for a gateway that this router has, or more than one other: two routers believe they are it."""
    for gateway in one["gateways"]:
        if len(gateway["answers"] or ()) > (0 if gateway["held"] else 1):
            return "DuplicatePrimary"
    return "NoSinglePrimary"
