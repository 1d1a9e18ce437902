"""Where the lab keeps its files: one folder that is expensive to fill and one that is thrown away.

Both can be moved by an environment variable, so that a full disk or a read-only home is a setting and not a patch.
"""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def cache_dir() -> Path:
    """What was built or downloaded once and serves every run: ``$SYSVM_LAB_CACHE`` or ``~/.cache/sysvm-lab``."""
    return Path(os.environ.get("SYSVM_LAB_CACHE") or Path.home() / ".cache" / "sysvm-lab").absolute()


def run_dir() -> Path:
    """What belongs to the running lab and goes with it: ``$SYSVM_LAB_DIR`` or ``.lab`` in the repository."""
    return Path(os.environ.get("SYSVM_LAB_DIR") or REPOSITORY / ".lab").absolute()
