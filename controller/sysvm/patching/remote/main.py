"""The ways to start the program: a session over SSH, what a hypervisor host sends, the detached worker, the boot unit,
a person at the console."""

import argparse
import json
import os
import sys

from . import arriving, files, worker
from . import journal as journals
from .failures import Failure, of
from .host import Host
from .serve import Session
from .store import Store
from .transaction import tidy
from .wire import Closed, Wire


def parser():
    made = argparse.ArgumentParser(
        prog="sysvm", description="Live patch of a CloudStack system VM: the part on the VM."
    )
    made.add_argument("--root", default="/", help="a folder that plays the VM (for tests)")
    made.add_argument(
        "--status", action="store_true", help="say what was done here, what is unfinished, what can be undone"
    )
    made.add_argument("--back", metavar="ID", help="go back to the state before the latest committed operation")
    made.add_argument(
        "--recover", action="store_true", help="end an interrupted operation without touching services (boot)"
    )
    made.add_argument("--accept", metavar="ID", help="a person has mended what operation ID left inconsistent")
    made.add_argument("command", nargs="*", help="serve | arrive ID | run ID | back ID")
    return made


def main(argv, modules):
    """Returns the exit code. `modules`: where the program was loaded from (`start`)."""
    arguments = parser().parse_args(argv)
    host = Host(arguments.root)
    if host.scratch and os.environ.get("SYSVM_FAULT"):
        files.FAULTS.arm(os.environ["SYSVM_FAULT"])
    # What is written is for root alone, whatever the shell that started us allows.
    os.umask(0o077)
    store = Store(host)
    try:
        if arguments.recover:
            return worker.recover_at_boot(host, store)
        if arguments.status:
            return status(store)
        if arguments.accept:
            return accept(store, arguments.accept)
        if arguments.back:
            return by_hand(host, store, arguments.back)
        return command(host, store, arguments.command, modules)
    except Failure as failure:
        sys.stderr.write("sysvm: {0}: {1}\n".format(failure.reason, failure.message))
        return 1
    except OSError as error:
        # What was begun is in the journal: the next start, session or boot ends it.
        sys.stderr.write("sysvm: {0}: {1}\n".format(*of(error, "SwitchFailed")))
        return 1
    except Closed as closed:
        sys.stderr.write("sysvm: {0}\n".format(closed))
        return 2


def command(host, store, words, modules):
    if words == ["serve"]:
        wire = Wire(0, 1, opened=modules.spoken)
        Session(wire, host, store, modules.program, modules.digest.hex(), modules.keep).serve()
        return 0
    if len(words) == 2 and words[0] == "arrive":
        return arriving.arrive(store, words[1], 0)
    if len(words) == 2 and words[0] == "run":
        return worker.run(host, store, words[1])
    if len(words) == 2 and words[0] == "back":
        return worker.back(host, store, words[1])
    parser().print_usage(sys.stderr)
    return 2


# ------------------------------------------------------------------------------------------ the console


def status(store):
    """For people. Changes nothing. Exit code 1 if somebody has to do something."""
    code = 0
    operations = store.operations()
    backups = [operation.id for operation, _ in store.backups()]
    print("highest epoch: {0}".format(store.highest_epoch()))  # noqa: T201
    for operation, _ in operations[:20]:
        report = store.report(operation)
        state = report["phase"]
        if state not in journals.FINAL:
            state += " (in work)" if report["alive"] else " (interrupted; --recover or the next boot ends it)"
            code = 1
        elif state == journals.INCONSISTENT and not files.exists(operation.path("accepted")):
            code = 1
        backup = ", backup kept" if operation.id in backups else ""
        print("{0}: {1}{2}, revision {3}".format(report["id"], state, backup, report["revision"]))  # noqa: T201
        if report["reason"] or report["message"]:
            print("    {0}: {1}".format(report["reason"] or "-", report["message"]))  # noqa: T201
    if not operations:
        print("no operation is known")  # noqa: T201
    if backups:
        print("to take back the latest: python3 {0} --back {1}".format(sys.argv[0], backups[0]))  # noqa: T201
    return code


def by_hand(host, store, name):
    worker.back(host, store, name)
    report = store.report(store.operation(name))
    print(json.dumps(report, indent=2, sort_keys=True))  # noqa: T201
    return 0 if report["phase"] == journals.ROLLED_BACK else 1


def accept(store, name):
    """The next operation may begin; the record of what happened stays."""
    store.take_lock(name)
    try:
        operation = store.operation(name)
        report = operation.report()
        if not report or report["phase"] != journals.INCONSISTENT:
            raise Failure("ProtocolError", "{0} is not inconsistent".format(name), False)
        files.replace_with(operation.path("accepted"), b"", 0o600)
        tidy(store, None)
    finally:
        store.release_lock()
    return 0
