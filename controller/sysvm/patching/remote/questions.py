"""Questions to services, as their users ask them: only an answer proves that a service serves."""

import os
import socket
import struct
import threading
import time

from . import hold

ASK_EVERY = 0.02
ASK_TIMEOUT = 2.0
"""A connection that waits in the queue of a server that reloads is late and not lost: it is not given up at once."""
ASK_DATAGRAM_TIMEOUT = 0.25
"""A question that was lost gets no answer, however long one waits."""
TRIES = 3
"""A VM that is short of CPU answers late: one question without an answer is no service that died."""
TRY_AGAIN_SECONDS = 0.1
STATS_LINE = b"Name: HAProxy"
GUESTS = "guests"


def questions_here(host, checks):
    """Questions with addresses in the place of `guests`, which only the VM knows: one for each guest network."""
    found = []
    for check in checks:
        if check["host"] == GUESTS:
            found += [dict(check, host=address) for address in hold.guest_addresses(host)]
        else:
            found.append(check)
    return found


def answers(check, patience=1):
    """Whether the service answers now (order_words.py `ProbeCheck`). `patience`: so many times the usual time it may
    take for an answer that may have been lost."""
    try:
        return _ask(check, patience)
    except _silences():
        return False


def answers_in_time(check):
    """The same for a baseline: only silence is asked again, a refusal is an answer."""
    for patience in range(1, TRIES + 1):
        try:
            return _ask(check, patience)
        except socket.timeout:
            continue
        except _silences():
            return False
    return False


def _ask(check, patience):
    if check["kind"] == "tcp":
        socket.create_connection((check["host"], check["port"]), ASK_TIMEOUT).close()
        return True
    if check["kind"] == "http":
        return _http(check)
    if check["kind"] == "haproxy":
        return _haproxy(check)
    return _dns(check, ASK_DATAGRAM_TIMEOUT * patience)


def _silences():
    """What a service that does not answer as it should raises."""
    import http.client  # a third of the time that a look takes to start, and a look needs none of it

    return OSError, http.client.HTTPException, ValueError


def _http(check):
    import http.client

    connection = http.client.HTTPConnection(check["host"], check["port"], timeout=ASK_TIMEOUT)
    try:
        connection.request("GET", check.get("name") or "/", headers={"Connection": "close"})
        return connection.getresponse().status < 500
    finally:
        connection.close()


def _haproxy(check):
    """Its command socket: there only where CloudStack has written the configuration."""
    asking = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        asking.settimeout(ASK_TIMEOUT)
        asking.connect(check["host"])
        asking.sendall(b"show info\n")
        return asking.recv(4096).startswith(STATS_LINE)
    finally:
        asking.close()


def _dns(check, timeout):
    number = int.from_bytes(os.urandom(2), "big")
    labels = [label.encode("ascii") for label in (check.get("name") or "localhost").strip(".").split(".")]
    question = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    asked = struct.pack(">HHHHHH", number, 0x0100, 1, 0, 0, 0) + question + struct.pack(">HH", 1, 1)
    family = socket.AF_INET6 if ":" in check["host"] else socket.AF_INET
    asking = socket.socket(family, socket.SOCK_DGRAM)
    try:
        asking.settimeout(timeout)
        asking.connect((check["host"], check["port"]))
        asking.send(asked)
        answer = asking.recv(4096)
        return len(answer) >= 12 and answer[:2] == asked[:2] and bool(answer[2] & 0x80)
    finally:
        asking.close()


class GapMeter(object):
    """Asks all the time while a unit is acted on.

    `gap`: the longest time without an answer, from the last one before a question that failed to the first one after;
    0.0 if none failed. `slowest`: the longest time that one answer took. A server that reloads makes a request wait
    and loses none, which is no gap.

    `silent_since` (monotonic): what did not answer at the end has not answered since. Given to the next meter, the gap
    of that one begins there.
    """

    def __init__(self, checks, silent_since=None):
        self.checks = checks
        self.gap = None
        self.slowest = None
        self.silent_since = None
        self._began_silent = silent_since
        self._done = threading.Event()
        self._threads = []
        self._found = {}
        self._silent = {}

    def __enter__(self):
        for number, check in enumerate(self.checks):
            thread = threading.Thread(target=self._ask, args=(number, check))
            thread.daemon = True
            thread.start()
            self._threads.append(thread)
        return self

    def _ask(self, number, check):
        failing = self._began_silent is not None
        answered = self._began_silent if failing else time.monotonic()
        longest = slowest = 0.0
        while not self._done.is_set():
            asked = time.monotonic()
            served = answers(check)
            now = time.monotonic()
            if served:
                slowest = max(slowest, now - asked)
                if failing:
                    longest = max(longest, now - answered)
                failing = False
                answered = now
            else:
                failing = True
            self._found[number] = (longest, slowest)
            self._done.wait(ASK_EVERY)
        if failing:
            self._found[number] = (max(longest, time.monotonic() - answered), slowest)
            self._silent[number] = answered

    def __exit__(self, *ignored):
        self._done.set()
        for thread in self._threads:
            thread.join(ASK_TIMEOUT + 1.0)
        if self._found:
            self.gap = round(max(longest for longest, _ in self._found.values()), 3)
            self.slowest = round(max(slowest for _, slowest in self._found.values()), 3)
        if self._silent:
            self.silent_since = min(self._silent.values())
