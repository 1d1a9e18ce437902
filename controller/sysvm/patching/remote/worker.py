"""The detached process: it carries an operation out while the session that asked for it may come and go."""

import subprocess
import sys

from . import journal as journals
from .failures import Failure, of
from .host import tail
from .transaction import BACK_AGAIN_SECONDS, Transaction, recover_all, tidy

UNIT_PROPERTIES = (
    (
        "MemoryMax=64M",
        "TasksMax=64",
        "Restart=on-failure",
        "RestartSec=1",
        "StartLimitIntervalSec=300",
        "StartLimitBurst=3",
    ),
    ("MemoryLimit=64M", "Restart=on-failure", "RestartSec=1"),
    (),
)
"""Tried in this order: a VM without a memory controller, or with an old systemd, refuses some."""


def start(host, store, operation, digest, arguments):
    """Start `sysvm.pyz ARGUMENTS` in a unit of its own. Returns what had to be left out, as notes.

    Killed (also by its memory limit), it is started again and then recovers instead of going on.
    """
    program = store.program_path(digest)
    argv = [sys.executable, "-I", "-B", program]
    if host.scratch:
        argv += ["--root", host.root]
    argv += arguments
    unit = "sysvm-" + "-".join(arguments).replace("run-", "", 1)
    if not host.has_program("systemd-run"):
        _detach(argv)
        return ["systemd-run is missing: the program runs without a memory limit"]
    said = ""
    for attempt, properties in enumerate(UNIT_PROPERTIES):
        host.run(["systemctl", "reset-failed", unit + ".service"], 10.0)
        command = ["systemd-run", "--unit=" + unit, "--collect", "--quiet", "--description=sysvm live patch"]
        command += ["--property=" + text for text in properties]
        done = host.run(command + argv, 20.0)
        if done.ok:
            return ["systemd refused some limits: " + tail(said, 200)] if attempt else []
        said = done.output
        if attempt == 0 and ("collect" in said or "unrecognized" in said):
            # systemd before 236
            done = host.run([word for word in command if word != "--collect"] + argv, 20.0)
            if done.ok:
                return []
    raise Failure("SwitchFailed", "systemd-run: " + tail(said, 500))


def _detach(argv):
    subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )


def run(host, store, name):
    """`run ID`: carry out a built operation, recover one that was interrupted. Exit code 0: it has ended."""
    operation = store.operation(name)
    store.take_lock(name, wait=15.0)
    try:
        report = operation.report()
        if report is None:
            raise Failure("ProtocolError", "this VM does not know operation {0}".format(name), False)
        if report["phase"] in journals.FINAL:
            return 0
        if report["phase"] != journals.BUILT:
            recover_all(host, store, False)
            return 0
        transaction = Transaction(host, store, operation)
        try:
            if store.highest_epoch() > transaction.order["epoch"]:
                transaction.abandon("EpochRefused", "another operator leads now; nothing was changed")
            else:
                transaction.run()
            keep = transaction.order["keep_backups"]
        finally:
            transaction.close()
        tidy(store, keep)
        return 0
    finally:
        store.release_lock()


def back(host, store, name):
    """`back ID`: take a committed operation back, if it is the latest."""
    store.take_lock(name, wait=15.0)
    try:
        recover_all(host, store, False)
        check_back(store, name)
        transaction = Transaction(host, store, store.operation(name))
        try:
            transaction.take_back()
        except (Failure, OSError) as error:
            reason, message = of(error, "SwitchFailed")
            said = "it could not be taken back, and nothing was changed: {0}".format(message)
            transaction.journal.add("note", text=tail(said, 500))
            raise Failure(reason, said)
        finally:
            transaction.close()
        tidy(store, None)
        return 0
    finally:
        store.release_lock()


def check_back(store, name):
    """Raises `Failure` unless `name` is the latest committed operation and its backup is there."""
    report = store.operation(name).report()
    if report and report["phase"] == journals.ROLLED_BACK:
        raise Failure("OperationRepeated", "{0} has been taken back already".format(name), False)
    backups = store.backups()
    if not backups or backups[0][0].id != name:
        latest = backups[0][0].id if backups else "none"
        raise Failure("OperationRepeated", "only the latest backup can be gone back to: {0}".format(latest), False)


def recover_at_boot(host, store):
    """`--recover`: the boot unit. Always returns 0: a boot never waits for a person."""
    waits = list(BACK_AGAIN_SECONDS)
    while True:
        try:
            store.take_lock("recover")
            try:
                for report in recover_all(host, store, True):
                    sys.stderr.write("sysvm: {0}: {1}: {2}\n".format(report["id"], report["phase"], report["message"]))
            finally:
                store.release_lock()
        except (Failure, OSError, ValueError, KeyError) as error:
            sys.stderr.write("sysvm: not recovered: {0}\n".format(of(error, "Inconsistent")[1]))
            if isinstance(error, OSError) and waits:
                host.wait(waits.pop(0))
                continue
        return 0
