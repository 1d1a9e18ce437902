"""Health checks from a warm interpreter end as they do when each is started by itself, whatever they do."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from tests.remote.vm import write

from sysvm.patching.remote import actors, checks

PYTHON = b"#!" + os.fsencode(os.path.realpath(sys.executable)) + b"\n"
if checks.PYTHON.match(PYTHON) is None:
    PYTHON = b"#!/usr/bin/python3\n"

SCRIPTS = {
    "passes": b"print('fine')\n",
    "says why it fails": b"import sys\nprint('disk full')\nsys.exit(1)\n",
    "is silent": b"",
    "is silent and fails": b"import sys\nsys.exit(3)\n",
    "says nothing but white space": b"print('  ')\n",
    "ends with words": b"print('said')\nraise SystemExit('words')\n",
    "ends with None": b"print('said')\nraise SystemExit(None)\n",
    "raises": b"print('said')\nraise ValueError('no')\n",
    "is no Python": b"print('said'\n",
    "leaves at once": b"import os\nos.write(1, b'said')\nos._exit(3)\n",
    "loses what it had not written": b"import os\nprint('said')\nos._exit(0)\n",
    "dies of a signal": b"import os\nos.write(1, b'said')\nos.kill(os.getpid(), 9)\n",
    "aborts": b"import os\nos.write(1, b'said')\nos.abort()\n",
    "says much": b"print('x' * 3000000)\n",
    "has a non-daemon thread": b"import threading, time\nthreading.Timer(0.1, lambda: print('late')).start()\n",
    "says it at exit": b"import atexit, sys\natexit.register(print, 'late')\nsys.exit(1)\n",
    "only for one kind": b"import sys\nif sys.argv[1:] == ['advanced']: print('said')\n",
    "imports its neighbour": b"from neighbour import WORD\nprint(WORD)\n",
    "shadows a module": b"import csv, select, colorsys\nprint(colorsys.NEIGHBOUR, select.NEIGHBOUR)\n",
    "is the main module": b"import __main__, sys\nprint(__main__.X)\n".replace(b"import", b"X = 1\nimport", 1),
    "knows itself": b"import sys\nprint(1)\nsys.exit((__file__, __name__) != (sys.argv[0], '__main__'))\n",
    "has an empty input": b"import sys\nprint(1)\nsys.exit(sys.stdin.read() != '')\n",
    "is in its folder": b"import os\nprint(1)\nraise SystemExit(os.getcwd() != os.path.dirname(__file__))\n",
    "leads its group": b"import os\nprint(1)\nraise SystemExit({os.getpgrp(), os.getsid(0)} != {os.getpid()})\n",
    "has no open files": b"import os\nprint(1)\nraise SystemExit(len(os.listdir('/proc/self/fd')) != 4)\n",
    "starts a program": b"import subprocess, sys\nsys.exit(subprocess.call(['sh', '-c', 'echo said; exit 4']))\n",
    "forks": b"import os\nif os.fork(): os.wait()\nprint('twice')\n",
    "changes what it can": b"import os, sys\nos.environ['A'] = 'b'\nsys.path[:] = []\nos.chdir('/')\nprint(1)\n",
    "uses nothing of the changed": b"import os, csv\nprint(1)\nraise SystemExit('A' in os.environ)\n",
    "is in another encoding": b"# coding: latin-1\nprint(1)\nraise SystemExit(len('\xe4') != 1)\n",
    "needs the language of now": b"print(1)\nraise SystemExit(f'{3 / 2}' != '1.5')\n",
    "knows its lines": b"import sys\nprint(1)\n\nsys.exit(sys._getframe().f_lineno != 5)\n",
}
OTHERS = {
    "a shell script": b"#!/bin/sh\necho said\n[ $1 = basic ]\n",
    "env": b"#!/usr/bin/env python3\nprint('said')\n",
    "options": b"#!/usr/bin/python3 -S\nprint('said')\n",
    "no such interpreter": b"#!/usr/bin/python3.99\nprint('said')\n",
    "nothing at all": b"print('said')\n",
}


@pytest.fixture
def folder(vm):
    place = vm.root / "root/health_checks"
    write(place / "neighbour.py", b"WORD = 'hello'\n")
    return place


def name_of(words: str) -> str:
    return words.replace(" ", "_") + ".py"


def fill(folder: Path, scripts: dict[str, bytes], first: bytes = b"") -> None:
    for words, text in scripts.items():
        write(folder / name_of(words), first + text, 0o755)


def asked(monkeypatch) -> list[object]:
    """What the warm interpreters answered; None: the check was run the ordinary way."""
    answers: list[object] = []
    ask = checks.Interpreter.ask

    def listening(self, *args):
        answers.append(ask(self, *args))
        return answers[-1]

    monkeypatch.setattr(checks.Interpreter, "ask", listening)
    return answers


def test_every_kind_of_script_ends_as_if_it_were_started_by_itself(vm, folder, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    fill(folder, SCRIPTS, PYTHON)
    fill(folder, OTHERS)
    for module in ("select", "colorsys"):
        write(folder / f"{module}.py", b"NEIGHBOUR = 'mine'\n")
    answers = asked(monkeypatch)
    warm = checks.run(vm.host(), 120.0)
    assert len(answers) == 2 * (len(SCRIPTS) + 1)
    assert sum(answer is None for answer in answers) == 2  # of the interpreter that is not there
    monkeypatch.setattr(checks, "interpreter_of", lambda path: None)
    cold = checks.run(vm.host(), 120.0)
    assert [set(cold[key]) ^ set(warm[key]) for key in sorted(cold)] == [set(), set(), set()]
    told = set(warm["passed"]) | set(warm["failing"])
    silent = {
        "is silent",
        "is silent and fails",
        "says nothing but white space",
        "is no Python",
        "loses what it had not written",
        "starts a program",  # subprocess itself falls over the neighbour called select
    }
    assert told == {name_of(words) for words in {**SCRIPTS, **OTHERS}} - {name_of(words) for words in silent}
    assert name_of("says why it fails") in warm["failing"]
    assert not {
        name_of(words) for words in SCRIPTS if words.startswith(("has ", "knows", "leads", "uses", "is in", "shadows"))
    } & set(warm["failing"])


def test_a_check_that_hangs_is_stopped_with_all_it_started_and_the_next_one_runs(vm, folder, monkeypatch):
    monkeypatch.setattr(checks, "CHECK_SECONDS", 1.0)
    note = folder / "child"
    fill(
        folder,
        {
            "a hangs": b"import os, subprocess\nif os.sys.argv[1] != 'basic': raise SystemExit\n"
            b"child = subprocess.Popen(['sleep', '600'])\nopen(%r, 'w').write(str(child.pid))\nchild.wait()\n"
            % str(note),
            "b closes its output and hangs": b"import os, sys, time\nif sys.argv[1] != 'basic': raise SystemExit\n"
            b"os.write(1, b'said')\nos.close(1)\ntime.sleep(600)\n",
            "c passes": b"print('said')\n",
        },
        PYTHON,
    )
    answers = asked(monkeypatch)
    found = checks.run(vm.host(), 60.0)
    assert found == {
        "failing": [],
        "passed": ["c_passes.py"],
        "timed_out": ["a_hangs.py", "b_closes_its_output_and_hangs.py"],
    }
    assert None not in answers
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{note.read_text()}") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not os.path.exists(f"/proc/{note.read_text()}")


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.13"])
def test_old_and_new_interpreters_end_checks_alike(vm, folder, monkeypatch, version):
    found = sorted(Path("/root/.pyenv/versions").glob(f"{version}.*/bin/python")) if os.access("/root", os.R_OK) else []
    if not found:
        pytest.skip(f"Python {version} is not here")
    scripts = {words: text for words, text in SCRIPTS.items() if words != "says much"}
    fill(folder, scripts, b"#!" + os.fsencode(found[0]) + b"\n")
    answers = asked(monkeypatch)
    warm = checks.run(vm.host(), 120.0)
    assert (None in answers) == (version == "2.7")
    monkeypatch.setattr(checks, "interpreter_of", lambda path: None)
    assert checks.run(vm.host(), 120.0) == warm


@pytest.mark.parametrize(
    "harm",
    [
        b"os.kill(os.getppid(), 9)\n",
        b"os.kill(os.getppid(), 19)\n",  # stopped: it never answers
    ],
)
def test_a_check_that_harms_its_interpreter_is_run_once_more_by_itself(vm, folder, monkeypatch, harm):
    monkeypatch.setattr(checks, "CHECK_SECONDS", 0.5)
    monkeypatch.setattr(checks, "ANSWER_SECONDS", 0.5)
    text = b"import os\nif b'health_checks' in open('/proc/%d/cmdline' % os.getppid(), 'rb').read(): " + harm
    fill(folder, {"a harms": text + b"print('said')\n", "b passes": b"print('said')\n"}, PYTHON)
    assert checks.run(vm.host(), 60.0) == {"failing": [], "passed": ["a_harms.py", "b_passes.py"], "timed_out": []}


def test_the_interpreter_counts_as_a_command_while_it_is_there_and_leaves_nothing(vm, folder, monkeypatch):
    started = []
    warm = checks.Interpreter.__init__

    def noting(self, *args):
        warm(self, *args)
        started.append((self.process, self.process.args))

    monkeypatch.setattr(checks.Interpreter, "__init__", noting)
    fill(folder, {"passes": b"print('said')\n"}, PYTHON)
    checks.run(vm.host(), 60.0)
    ((process, argv),) = started
    assert process.returncode == 0
    argv = [*argv[:3], "/root/health_checks/"]
    assert actors.is_command(actors.Process(1000, 999, 1.0, 1.0, argv, ""))
