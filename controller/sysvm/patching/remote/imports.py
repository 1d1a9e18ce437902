"""Whether a Python script gets past its imports, without running any of it.

This text is given to the interpreter that would run the script (`python -c TEXT SCRIPT`), which may be a Python 2. Its
own modules, beside it, are parsed in turn; of all others only the first name is looked for, and imported if a package
brings it. Exit code 1: the output says what is missing.
"""

import ast
import os
import sys

MAX_MODULES = 300
OLD = sys.version_info[0] == 2


def parsed(path):
    with open(path, "rb") as file:
        return ast.parse(file.read(), path)


def wanted(tree):
    """Dotted names that are imported whenever the module is: not in functions, not where a failure is caught."""
    waiting = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, ()
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0 and node.module != "__future__":
                yield node.module, tuple(alias.name for alias in node.names)
        elif isinstance(node, ast.If):
            waiting += [] if guards(node.test) else node.body + node.orelse
        elif isinstance(node, (ast.With, ast.ClassDef)):
            waiting += node.body


def guards(test):
    """What stands behind such a condition is not always imported."""
    names = [node.id for node in ast.walk(test) if isinstance(node, ast.Name)]
    names += [node.attr for node in ast.walk(test) if isinstance(node, ast.Attribute)]
    return "TYPE_CHECKING" in names or "version_info" in names


def beside(folder, name):
    """Files of the script's own that a dotted name stands for; None: it is somebody else's."""
    parts = name.split(".")
    found = []
    for number in range(1, len(parts) + 1):
        place = os.path.join(folder, *parts[:number])
        if os.path.isfile(os.path.join(place, "__init__.py")):
            found.append(os.path.join(place, "__init__.py"))
        elif os.path.isfile(place + ".py"):
            return found + [place + ".py"]
        elif os.path.isdir(place) and not OLD:
            continue
        elif number == 1:
            return None
        else:
            return found + [place + ".py"]
    return found


def place_of(top):
    """Where a module of others lies, empty for those of the interpreter itself; None: there is none."""
    if top in sys.builtin_module_names:
        return ""
    if not OLD:
        import importlib.util

        spec = importlib.util.find_spec(top)
        return None if spec is None else spec.origin or ""
    import imp

    try:
        return imp.find_module(top)[1] or ""
    except ImportError:
        return None


def lack(name):
    """Why a module of others cannot be had, as the end of a sentence; empty: it can.

    What a package brings is imported: it may fail for want of what the package wants beside (netaddr reads its list of
    makers of network cards at once).
    """
    top = name.split(".")[0]
    place = place_of(top)
    if place is None:
        return "needs the module " + name
    if "-packages" not in place:
        return ""
    try:
        __import__(top)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, the script would end of it
        return "needs the module {0}, which fails ({1}: {2})".format(top, type(error).__name__, error)
    return ""


def missing(script):
    folder = os.path.dirname(script)
    waiting, seen, lacking = [script], set([script]), []
    while waiting and len(seen) < MAX_MODULES:
        path = waiting.pop()
        try:
            tree = parsed(path)
        except SyntaxError as error:
            text = "{0} line {1} is no Python {2} ({3})"
            version = ".".join(str(number) for number in sys.version_info[:2])
            lacking.append(text.format(os.path.basename(path), error.lineno, version, error.msg))
            continue
        except (IOError, OSError):
            lacking.append("there is no {0}".format(os.path.relpath(path, folder)))
            continue
        for name, members in wanted(tree):
            own = beside(folder, name)
            if own is None and OLD:
                # A module of a package may name its neighbours without the package.
                own = beside(os.path.dirname(path), name)
            if own is None:
                why = lack(name)
                if why:
                    lacking.append("{0} {1}".format(os.path.basename(path), why))
                continue
            for member in members:
                # `from cs import CsHelper` names a module, or something in one.
                below = beside(folder, name + "." + member)
                own = own + [one for one in below or () if os.path.isfile(one)]
            for one in own:
                if one not in seen:
                    seen.add(one)
                    waiting.append(one)
    return lacking


def main():
    sys.path[:] = [path for path in sys.path if path]
    found = sorted(set(missing(sys.argv[1])))
    sys.stdout.write("; ".join(found[:8]) + "\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
