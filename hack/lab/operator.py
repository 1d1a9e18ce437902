"""The operator as a plain process, with the chart's identity and settings.

There is no kubelet in the lab, so its part is played here: the command and environment of the rendered Deployment,
the program from this virtual environment, logs into the run folder. A test kills it the way a node does.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.controlplane import Unavailable, processes
from lab.controlplane.processes import Recorded

_NAME = "operator"
_GRACE_SECONDS = 60.0
_KILL_SECONDS = 10.0


@dataclass(frozen=True)
class OperatorProcess:
    """One run of the operator; the run folder knows it, so another command can find and end it.

    Attributes:
        run_dir: folder of its record and log.
        process: what is known of it.
    """

    run_dir: Path
    process: Recorded

    @classmethod
    def start(
        cls,
        run_dir: Path,
        kubeconfig: Path,
        env: Mapping[str, str],
        *,
        command: Sequence[str] = ("sysvm-operator", "run"),
    ) -> OperatorProcess:
        """Start it with the Deployment's environment and command (``lab.chart.Rendered``), as changed by the caller.

        The log is appended to, so that several lives read as one story. It listens on loopback unless told otherwise.

        Raises:
            Unavailable: the project is not installed in this environment.
        """
        program = Path(sys.executable).with_name(command[0])
        if not program.is_file():
            raise Unavailable(f"{program} is not there: install the project into this environment with `uv sync`.")
        run_dir = run_dir.absolute()
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        processes.stop(run_dir, _NAME, grace_seconds=_GRACE_SECONDS)
        process = processes.start(
            run_dir,
            _NAME,
            [sys.executable, program, *command[1:]],
            environment={"SYSVM_HTTP_HOST": "127.0.0.1", **env, "KUBECONFIG": str(kubeconfig)},
            log=run_dir / f"{_NAME}.log",
        )
        return cls(run_dir=run_dir, process=process)

    @classmethod
    def attach(cls, run_dir: Path) -> OperatorProcess | None:
        """The one that runs in ``run_dir``, else None."""
        process = processes.load(run_dir.absolute(), _NAME)
        return cls(run_dir=run_dir.absolute(), process=process) if process is not None and process.alive() else None

    @property
    def log(self) -> Path:
        """Standard output and error of all its lives."""
        return self.run_dir / f"{_NAME}.log"

    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process.alive()

    def stop(self, grace_seconds: float = _GRACE_SECONDS) -> bool:
        """SIGTERM and wait, as a kubelet does; False if it had to be killed after ``grace_seconds``."""
        return processes.stop(self.run_dir, _NAME, grace_seconds=grace_seconds)

    def kill(self) -> None:
        """SIGKILL, at once and without a word: what a lost node is to the operator."""
        self.process.signal(signal.SIGKILL)
        self.process.wait(_KILL_SECONDS)
        self.process.record.unlink(missing_ok=True)
