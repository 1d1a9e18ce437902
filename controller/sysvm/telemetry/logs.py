"""One line a record, as JSON for machines or text for people, always with what a record is about.

The fields `rollout`, `systemvm`, `operation`, `endpoint`, `policy` are given with `extra=` where they are known, so
that the story of one VM or one rollout is one filter in any log store.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

SUBJECTS = ("endpoint", "policy", "rollout", "systemvm", "operation", "template", "reason", "seconds", "bytes")

Format = Literal["json", "text"]


def _subjects(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name in SUBJECTS if (value := getattr(record, name, None)) not in (None, "")}


class JsonFormatter(logging.Formatter):
    """`{"time", "level", "logger", "message", ...subjects}`; an exception is in `error`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_subjects(record),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """`12:00:00 info message (rollout=... systemvm=...)`"""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S")
        about = " ".join(f"{name}={value}" for name, value in _subjects(record).items())
        line = f"{moment} {record.levelname.lower():7} {record.getMessage()}" + (f"  ({about})" if about else "")
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure(level: str, form: Format) -> None:
    """Sends every log to stderr at `level`. Libraries speak from warnings on: kopf would log every event."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("sysvm").setLevel(level.upper())
