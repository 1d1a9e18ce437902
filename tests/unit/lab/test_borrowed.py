"""A program that makes a lab for itself leaves none behind, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lab import paths

PROGRAM = """
import asyncio, signal, sys, time
from lab import Lab
from lab.borrowed import borrowed

def down(lab):
    print("going", flush=True)
    time.sleep(0.5)
    print("down", lab.run_dir.parent.is_dir(), flush=True)
    return []

async def measure():
    print("up", flush=True)
    await asyncio.sleep(60)

Lab.down = down
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored
with borrowed():
    if "asyncio" in sys.argv:
        asyncio.run(measure())
    print("up", flush=True)
    time.sleep(60)
"""


@contextmanager
def measuring(*words: str) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(str(paths.REPOSITORY / part) for part in ("controller", "hack"))
    }
    running = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        yield running
    finally:
        running.kill()
        running.communicate()


def line(running: subprocess.Popen[str]) -> str:
    assert running.stdout is not None
    return running.stdout.readline().strip()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("words", [(), ("asyncio",)], ids=["in a call", "in a loop"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_its_lab_goes_when_the_program_is_ended(number: signal.Signals, words: tuple[str, ...]) -> None:
    with measuring(*words) as running:
        assert line(running) == "up"
        running.send_signal(number)
        assert [line(running), line(running)] == ["going", "down True"]
        assert running.wait(30) == (128 + number if number is signal.SIGTERM else -number)


@pytest.mark.timeout(60)
def test_a_second_signal_does_not_cut_the_going_short() -> None:
    with measuring() as running:
        assert line(running) == "up"
        running.terminate()
        assert line(running) == "going"
        running.terminate()
        assert line(running) == "down True"
        assert running.wait(30) == 128 + signal.SIGTERM


@pytest.mark.timeout(60)
@pytest.mark.parametrize("module", ["faults.memory", "bench.scan", "bench.routes"])
def test_asking_for_help_makes_no_lab(module: str) -> None:
    path = os.pathsep.join(str(paths.REPOSITORY / part) for part in (".", "controller", "hack"))
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        env=os.environ | {"PYTHONPATH": path, "TMPDIR": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    assert f"python -m {module}" in done.stdout
