"""Debian packages that the new scripts need, installed while the old ones still run.

dpkg cannot take an installation back, so it comes before the fence and stays whatever follows, and it must not change
what the old scripts run with: links in /usr/bin that decide which program that is are diverted while dpkg works, so
that it neither makes nor removes them. They change with the switch, as files of the order, and come back with it.

    the journal's last word   a restart finds                                        and does
    none                      nothing of it was begun                                 nothing
    start                     dpkg cut in the middle, perhaps diversions of ours      `settle`, or installs once more
    settled, done             diversions gone; what dpkg says is in the record        nothing
"""

import os
import re

from . import files, imports
from . import order as orders
from .checks import source_of
from .failures import Failure
from .host import tail

INFO = "/var/lib/dpkg/info"
DOCUMENTATION = ("/usr/share/doc/", "/usr/share/man/", "/usr/share/lintian/", "/usr/share/doc-base/")
ASIDE = ".sysvm-aside"
"""Ends the name by which dpkg knows a diverted link meanwhile."""
INSTALLED = "installed"
GONE = ("not-installed", "config-files")
HALF = ("unpacked", "half-configured", "triggers-pending", "triggers-awaited")
"""`dpkg --configure` brings these to their end."""
ALONE = ["--force-confdef", "--force-confold", "--force-depends"]
"""Nobody is asked, and nothing is fetched: python3-netaddr wants ieee-data, which CloudStack does not bring (its own
patch does not look how dpkg ended). Whether scripts get by without it, their imports say afterwards."""
LACKING = re.compile(r" depends on ([a-z0-9][a-z0-9+.-]+)[^\n;]*; however")
MAX_NAMES = 100
MAX_PATHS = 10
ASK_SECONDS = 20.0
DIVERT_SECONDS = 15.0
SETTLE_SECONDS = 120.0
LOCKED = re.compile(r"locked by another process|unable to (?:lock|access|acquire)|frontend lock", re.IGNORECASE)
NAME = re.compile(r"^[a-z0-9][a-z0-9+.-]{1,63}$")


def command(host, program, words):
    """Never asks anybody: what a person edited in /etc stays."""
    argv = ["env", "DEBIAN_FRONTEND=noninteractive", program]
    if host.scratch:
        argv += ["--root=" + host.root]
    return argv + words


# ------------------------------------------------------------------------------------------ facts


def facts(host, names):
    """protocol.py `PackageFact` of those that dpkg knows."""
    names = [name for name in names[:MAX_NAMES] if NAME.match(name)]
    if not names:
        return []
    argv = ["dpkg-query", "--admindir=" + host.at("/var/lib/dpkg")] if host.scratch else ["dpkg-query"]
    form = "${Package}\\t${db:Status-Status}\\t${Version}\\n"
    # Ends with 1 where it knows one of them not.
    said = host.run(argv + ["-W", "-f", form] + names, ASK_SECONDS, merged=False).output
    found = []
    for line in said.splitlines():
        words = line.split("\t")
        if len(words) == 3 and words[0] in names:
            links, others = owned(host, words[0]) if words[1] not in GONE else ([], [])
            fact = {"name": words[0], "status": words[1], "version": words[2], "links": links, "others": others}
            found.append(fact)
    return found


def owned(host, name):
    """(links in /usr/bin, other paths but folders and documentation) of a package."""
    links, others = [], []
    text = host.text("{0}/{1}.list".format(INFO, name))
    if text is None:
        # A package of which several architectures may be there at once has another name in it.
        return [], [name]
    for path in text.splitlines():
        real = host.at(path) if path.startswith("/") and path != "/." else None
        if real is None or path.startswith(DOCUMENTATION) or (os.path.isdir(real) and not os.path.islink(real)):
            continue
        if os.path.dirname(path) == "/usr/bin" and (os.path.islink(real) or not os.path.lexists(real)):
            links.append(path)
        else:
            others.append(path)
    return links, others[:MAX_PATHS]


def states(host, names):
    return dict((fact["name"], fact) for fact in facts(host, names))


# ------------------------------------------------------------------------------------------ install


def install(work, deadline):
    """The step. Returns what was done, for people. Raises `Failure`: then nothing but packages has changed."""
    journal, wanted = work.journal, work.order["packages"]
    # Of before dpkg, so a restart takes it from the record of then.
    ran = ran_before(journal.records)
    if ran is None:
        ran = [path for path in wanted["imports"] if not missing_imports(work, path, False)]
    if wanted["debs"] and last_word(journal.records) != "done":
        start(work, wanted, ran, deadline)
    for path in wanted["imports"]:
        now = missing_imports(work, path, False)
        if now and path in ran:
            text = "with the new packages {0} of before cannot be run any more ({1}), so there would be no way back"
            raise Failure("InterpreterChange", text.format(path, tail(now, 400)), False)
        lacking = missing_imports(work, path, True)
        if lacking:
            text = "{0} of the release cannot be run here: {1}"
            raise Failure("PackagesNeeded", text.format(path, tail(lacking, 400)), False)
    return told(journal.records)


def start(work, wanted, ran, deadline):
    host, journal = work.host, work.journal
    names = [deb["name"] for deb in wanted["debs"]]
    # A restart after this record knows which links may be diverted, whose state to tell, and which scripts could run.
    journal.add("packages", state="start", names=names, keep=wanted["keep"], ran=ran)
    place = dict((deb["name"], deb["path"]) for deb in work.plan["debs"])
    limits = Limits(wanted, deadline)
    try:
        for path in wanted["keep"]:
            divert(host, path, limits)
        there = states(host, names + wanted["remove"])
        going = [name for name in wanted["remove"] if name in there and there[name]["status"] not in GONE]
        if going:
            dpkg(host, ["--remove"] + going, limits)
        coming = [name for name in names if name not in there or there[name]["status"] != INSTALLED]
        said = dpkg(host, ALONE + ["--install"] + [place[name] for name in coming], limits) if coming else ""
    except Failure as failure:
        text = settle(host, journal, False)
        raise Failure(failure.reason, failure.message + text, failure.retryable)
    for path in wanted["keep"]:
        let_go(host, path)
    lacking = sorted(set(LACKING.findall(said)))
    text = "installed " + ", ".join("{0} {1}".format(deb["name"], deb["version"]) for deb in wanted["debs"])
    text += " (without {0}, which dpkg misses)".format(", ".join(lacking)) if lacking else ""
    text += "; removed " + ", ".join(going) if going else ""
    journal.add("packages", state="done", text=text)
    for path in place.values():
        files.unlink_if_there(path)


class Limits(object):
    def __init__(self, wanted, deadline):
        self.lock_seconds = wanted["lock_seconds"]
        self.timeout_seconds = wanted["timeout_seconds"]
        self.deadline = deadline

    def seconds(self):
        self.deadline.check("the Debian packages")
        return min(self.timeout_seconds, self.deadline.left())


def dpkg(host, words, limits):
    """One run, repeated while somebody else has dpkg's lock. Returns what it said, or raises `Failure` with it."""
    waited = 0.0
    while True:
        done = host.run(command(host, "dpkg", words), limits.seconds())
        if done.ok:
            return done.output
        if not LOCKED.search(done.output):
            raise Failure("PackagesNeeded", plainly(done))
        if waited >= limits.lock_seconds:
            raise Failure("VMBusy", "another program has kept dpkg's lock: " + plainly(done))
        host.wait(1.0)
        waited += 1.0


def plainly(done):
    how = "did not end in time" if done.code is None else "ended with {0}".format(done.code)
    words = [os.path.basename(word) for word in done.argv[2:] if not word.startswith("--root=")]
    said = " / ".join(line.strip() for line in done.output.splitlines() if line.strip())
    return "{0} {1}: {2}".format(" ".join(words), how, tail(said, 700))


# ------------------------------------------------------------------------------------------ links


def divert(host, path, limits):
    """dpkg takes the link for one of another name. Without effect where that is so already."""
    words = ["--local", "--no-rename", "--divert", path + ASIDE, "--add", path]
    done = host.run(command(host, "dpkg-divert", words), min(DIVERT_SECONDS, limits.seconds()))
    if not done.ok:
        raise Failure("PackagesNeeded", plainly(done))


def let_go(host, path):
    """The link is under its own name again, and what dpkg put beside it is gone. May be repeated. Raises `Failure`."""
    done = host.run(command(host, "dpkg-divert", ["--local", "--no-rename", "--remove", path]), DIVERT_SECONDS)
    if not done.ok:
        raise Failure("PackagesNeeded", plainly(done))
    # A restart before this finds no diversion, which `dpkg-divert` does not mind, and what lies beside. A dpkg that was
    # cut leaves more, which it looks for under the diverted name.
    for ending in ("", ".dpkg-new", ".dpkg-tmp"):
        files.unlink_if_there(host.at(path + ASIDE + ending))


# ------------------------------------------------------------------------------------------ after a failure or a cut


def last_word(records):
    found = [record["state"] for record in records if record["kind"] == "packages"]
    return found[-1] if found else None


def ran_before(records):
    """Scripts of before whose imports were there before dpkg began; None: it has not begun."""
    found = [record["ran"] for record in records if record["kind"] == "packages" and "ran" in record]
    return found[0] if found else None


def told(records):
    """What was done, for people; empty: nothing."""
    found = [record["text"] for record in records if record["kind"] == "packages" and record["state"] != "start"]
    return found[-1] if found else ""


def left(records):
    """Said where everything else is as it was."""
    text = told(records)
    return ", but for Debian packages, which stay: " + text if text else ""


def settle(host, journal, at_boot):
    """Bring an installation that was cut to an end that harms nobody. Returns what is left of it, for people.

    The old scripts run with what they had all the time, so nothing is removed again. At boot dpkg is not asked to
    configure anything: nobody may wait for it there, and the next order does.
    """
    if last_word(journal.records) != "start":
        return left(journal.records)
    record = [record for record in journal.records if record["kind"] == "packages"][-1]
    wrong = []
    for path in record["keep"]:
        try:
            let_go(host, path)
        except (Failure, OSError) as error:
            wrong.append(str(getattr(error, "message", error)))
    found = states(host, record["names"])
    if not at_boot and any(fact["status"] in HALF for fact in found.values()):
        half = sorted(name for name in found if found[name]["status"] in HALF)
        done = host.run(command(host, "dpkg", ALONE + ["--configure"] + half), SETTLE_SECONDS)
        wrong += [] if done.ok else [plainly(done)]
        found = states(host, record["names"])
    text = ", ".join("{0} is {1}".format(name, found[name]["status"]) for name in record["names"] if name in found)
    text = "; ".join([text or "none of {0} is there".format(", ".join(record["names"]))] + wrong)
    journal.add("packages", state="settled", text=text)
    return left(journal.records)


# ------------------------------------------------------------------------------------------ what scripts import


def missing_imports(work, path, new):
    """What a script would fail of before it does anything, as text; empty: nothing. None of it is run."""
    script = tree_path(work, path) if new else work.host.at(path)
    if not files.exists(script):
        return "" if not new else "it is missing"
    program = interpreter(work, script, new)
    if program is None:
        return "its first line names no program that is there"
    done = work.host.run([program, "-B", "-E", "-s", "-c", source_of(imports), script], ASK_SECONDS)
    return "" if done.ok else done.output.strip() or done.sentence()


def tree_path(work, path):
    """Where the new file lies before the switch: in the tree that is exchanged, or, if it does not change, live."""
    for tree in work.order["trees"]:
        if path.startswith(tree["path"] + "/"):
            for move in work.plan["moves"]:
                if move["op"] in ("exchange", "put-tree") and move["live"] == work.host.at(tree["path"]):
                    return os.path.join(move["stage"], path[len(tree["path"]) + 1 :])
    return work.host.at(path)


def interpreter(work, script, new):
    """Real path of the program in the script's first line: with the links of the order, or as they are."""
    with open(script, "rb") as file:
        words = file.readline(256).decode("utf-8", "replace").split()
    if not words or not words[0].startswith("#!/"):
        return None
    path = words[0][2:]
    if os.path.basename(path) == "env" and len(words) > 1:
        path = "/usr/bin/" + os.path.basename(words[1])
    links = dict((entry["path"], entry["link"]) for _, entry in orders.entries(work.order) if entry["link"])
    if new and path in links:
        path = os.path.normpath(os.path.join(os.path.dirname(path), links[path]))
    real = work.host.resolve(path)
    return real if os.access(real, os.X_OK) else None
