"""Stand-ins for payload files that the lab does not need to work.

Each says what it stands for, in the comment syntax of its kind, and is as large as the real file, so that
archives, transfers and disk needs are of the real size while no reader (logrotate, cron, sshd, systemd, ...) stumbles.
"""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path, PurePosixPath

_WORDS = (Path(__file__).parent / "words.txt").read_text(encoding="ascii").split()

_PHRASE = "of the system virtual machine in the lab"
_SHELL_LIKE = ("etc/cron.", "opt/cloud/bin/", "opt/cloud/templates/", "root/", "etc/profile.d/")


def _sentences(path: str, size: int, prefix: str, suffix: str = "\n") -> str:
    """At most ``size`` bytes of comment lines; words are drawn by the path, so that two builds agree."""
    # Not a secret: a fixed sequence a path.
    draw = random.Random(f"filler:{path}")
    lines: list[str] = []
    used = 0
    while True:
        words = " ".join((*(draw.choice(_WORDS) for _ in range(7)), _PHRASE))  # packs about as well as a script
        line = f"{prefix}{words}{suffix}"
        if used + len(line) > size:
            return "".join(lines)
        lines.append(line)
        used += len(line)


def pad(path: str, content: bytes, size: int) -> bytes:
    """Bring a working file to the size of the real one with trailing ``#`` comments, if its kind has such comments."""
    if not has_hash_comments(path) or len(content) + 160 > size:
        return content
    head = b"\n# The rest of this file only has the size of the real one.\n"
    room = size - len(content) - len(head)
    return content + head + _sentences(path, room, "# ").encode("ascii")


def has_hash_comments(path: str) -> bool:
    """Whether a line that begins with ``#`` is a comment to whoever reads this file."""
    name = PurePosixPath(path).name
    return not (name.endswith(".json") or name in {"README", "clear_cache"})


def script_filler(path: str, size: int) -> bytes:
    """A harmless file for ``path`` of ``cloud-scripts.tgz``, at most ``size`` bytes unless a header needs more."""
    name = PurePosixPath(path).name
    if name.endswith(".json"):
        return (json.dumps({"note": f"stands for {path}", "id": name.removesuffix(".json")}) + "\n").encode("ascii")
    if name == "README":
        return f"Stands for {path}.\n".encode("ascii")
    head = f"# Stands for {path}: not needed by the lab.\n"
    tail = ""
    if name.endswith(".py"):
        head = "#!/usr/bin/python\n" + head
    elif name.endswith(".sh") or (path.startswith(_SHELL_LIKE) and "." not in name) or path.startswith("etc/cron."):
        head, tail = "#!/bin/bash\n" + head, "exit 0\n" if not path.startswith("etc/profile.d/") else ""
    elif name.endswith(".service"):
        tail = f"[Unit]\nDescription=stand-in for {name}\n[Service]\nType=oneshot\nExecStart=/bin/true\n"
    body = _sentences(path, size - len(head) - len(tail), "# ")
    return (head + body + tail).encode("ascii")


def incompressible(label: str, size: int) -> bytes:
    """``size`` bytes that no packer makes smaller and every build makes alike."""
    return hashlib.shake_256(label.encode("utf-8")).digest(size)


def agent_filler(path: str, size: int) -> bytes:
    """A stand-in for a member of ``agent.zip``: noise for jars, images and packages, text for the rest."""
    name = PurePosixPath(path).name
    if size == 0:
        return b""
    if name.endswith((".js", ".css")):
        head, prefix, suffix = f"/* Stands for {path}. */\n", "/* ", " */\n"
    elif name.endswith(".json"):
        return (json.dumps({"note": f"stands for {path}"}) + "\n").encode("ascii")
    elif name.endswith((".html", ".ftl", ".xml", ".svg")):
        head, prefix, suffix = f"<!-- Stands for {path}. -->\n", "<!-- ", " -->\n"
    elif name.endswith((".sh", ".py", ".properties", ".ini", ".po")) or "/storage/secondary/" in path:
        shebang = "#!/bin/bash\n" if name.endswith(".sh") else ""
        head, prefix, suffix = f"{shebang}# Stands for {path}.\n", "# ", "\n"
    else:
        return incompressible(path, size)
    return (head + _sentences(path, size - len(head), prefix, suffix)).encode("ascii")
