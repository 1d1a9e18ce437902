"""`python -m fuzz TARGET CORPUS... [libFuzzer options]`: one target, coverage-guided, until told to stop.

Exists apart from the promises, because atheris is no dependency of the project: `make fuzz` borrows it.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["arpy", "tarfile", "zipfile", "sysvm.patching"]):
    for name in ("arpy", "tarfile", "zipfile"):
        sys.modules.pop(name, None)
    from fuzz.promises import TARGETS


def main() -> None:
    target = TARGETS[sys.argv.pop(1)]

    def once(data: bytes) -> None:
        target(data)

    atheris.Setup(sys.argv, once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
