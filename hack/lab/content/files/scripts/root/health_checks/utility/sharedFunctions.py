"""What several checks need: the expectations that were pushed, and how a check ends."""

import json
import sys


def getHealthChecksData(key=None):
    """Pushed expectations, or None when nothing was pushed or the file cannot be read."""
    try:
        with open("/root/health_checks_data.json", encoding="utf-8") as source:
            data = json.load(source)
    except (OSError, ValueError):
        return None
    return data.get(key) if key else data


def finish(problems, good):
    """Prints one line and exits 1 with problems, 0 without."""
    if problems:
        print("; ".join(problems))
        sys.exit(1)
    print(good)
    sys.exit(0)


def called_for(kind):
    """A check speaks only in the kind of run that it belongs to."""
    return len(sys.argv) == 2 and sys.argv[1] == kind


def text_of(path):
    try:
        with open(path, encoding="utf-8") as source:
            return source.read()
    except OSError:
        return ""
