"""Runs one Python script after the other from one interpreter that is already up.

Sixteen starts of an interpreter are most of what the health checks of a router cost. This text is given to the scripts'
own interpreter (`python3 -c TEXT FOLDER`), which makes a child for each script; in it the script is what it would be if
it had been started: `__main__`, its arguments, its folder first on the path, nothing on its input, a process group of
its own. Nothing of the program is in that interpreter, none of its files are open there, and the script ends as every
script does. Lines of JSON come in, lines of JSON go out; at the end of the input it leaves.

Only what `checks` sends is run, and whatever it does not answer is started the ordinary way.
"""

import sys

STARTED_WITH = frozenset(sys.modules)
"""What every script finds loaded, however it is started."""
WITH_FOLDER = __name__ == "__main__" and sys.path[:1] == [""]
if WITH_FOLDER:
    # What this text needs is never taken from the scripts' folder.
    del sys.path[0]

import gc  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import select  # noqa: E402
import signal  # noqa: E402
import subprocess  # noqa: E402, F401 - for the scripts: most of them want it
import time  # noqa: E402
import types  # noqa: E402

CHUNK = 65536


def serve(requests, answers):
    """Answers until the input ends, and leaves. Returns only in a child: (path, arguments) of the script to become."""
    source = os.fdopen(os.dup(requests), "rb", 0)
    sink = os.dup(answers)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, requests)
    os.dup2(nothing, answers)
    if hasattr(gc, "freeze"):
        # Half of a child's time goes into copying pages, because its collector counts what it has inherited.
        gc.freeze()  # novm
    while True:
        line = source.readline()
        if not line:
            os._exit(0)
        wanted = json.loads(line.decode("utf-8"))
        deadline = time.monotonic() + wanted["seconds"]
        output, said = os.pipe()
        child = os.fork()
        if child == 0:
            os.setsid()
            os.dup2(said, answers)
            source.close()
            for descriptor in (sink, nothing, output, said):
                os.close(descriptor)
            return wanted["path"], wanted["arguments"]
        os.close(said)
        answer = watch(child, output, deadline)
        os.write(sink, (json.dumps(answer) + "\n").encode("utf-8"))


def watch(child, output, deadline):
    """`code` as subprocess gives it, None if it was stopped at its time; `said`: more than white space."""
    said = False
    ended = None
    while ended is None:
        ready = select.select([output], [], [], max(0.0, deadline - time.monotonic()))[0]
        chunk = os.read(output, CHUNK) if ready else None
        if chunk is None:
            break
        if not chunk:
            ended = wait(child, deadline)
            break
        said = said or bool(chunk.decode("utf-8", "replace").strip())
    os.close(output)
    if ended is None:
        for kill in (os.killpg, os.kill):
            try:
                kill(child, signal.SIGKILL)
            except ProcessLookupError:
                pass
        os.waitpid(child, 0)
        return {"code": None, "said": said}
    return {"code": ended, "said": said}


def wait(child, deadline):
    """It has closed its output; most have ended with that."""
    pause = 0.0005
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        if time.monotonic() >= deadline:
            return None
        time.sleep(pause)
        pause = min(0.02, 2 * pause)


def become(path, arguments):
    """Run a script as `python3 path arguments` would. Whatever it raises ends this process as it would end that one."""
    with open(path, "rb") as file:
        text = file.read()
    if WITH_FOLDER:
        sys.path.insert(0, os.path.dirname(os.path.realpath(path)))
        forget_shadowed(sys.path[0])
    sys.argv[:] = [path] + arguments
    module = types.ModuleType("__main__")
    module.__file__ = path
    module.__builtins__ = __builtins__  # type: ignore[attr-defined]  # every module has one
    sys.modules["__main__"] = module
    exec(compile(text, path, "exec", dont_inherit=True), module.__dict__)


def forget_shadowed(folder):
    """A module of the script's folder comes before one of the same name that was loaded for this text, also where
    another module asks for it: then the script loads everything anew."""
    loaded = set(sys.modules) - STARTED_WITH - set(["__main__"])
    places = [os.path.join(folder, name.partition(".")[0]) for name in loaded]
    if any(os.path.exists(place) or os.path.exists(place + ".py") for place in places):
        for name in loaded:
            del sys.modules[name]


if __name__ == "__main__":
    _main = sys.modules["__main__"]
    become(*serve(0, 1))
