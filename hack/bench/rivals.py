"""What a person would use instead. All of them log in with the same key and cipher, and check the same host keys."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

from bench.change import Change
from bench.fleet import CONNECTIONS, Fleet
from bench.measure import ContestFailed, Sample, run

_HERE = Path(__file__).resolve().parent


def equal_loop(fleet: Fleet, change: Change) -> Sample:
    """`xargs -P` over scp and ssh with the same guarantees: backup, proof, validation, reload, checks, a way back."""
    ssh = f"ssh -F {fleet.ssh_config()}"
    scp = f"scp -q -F {fleet.ssh_config()}"
    sent = " ".join(shlex.quote(str(change.folder / name)) for name in ("change.tgz", "cloud-scripts.tgz", "sums"))
    place = "/var/tmp/loop-patch"
    job = (
        f"{ssh} $1 'rm -rf {place}; mkdir -m 700 {place}' && "
        f"{scp} {sent} {change.folder}/signature {_HERE}/apply.sh $1:{place}/ && "
        f"{ssh} $1 'bash {place}/apply.sh {place}'"
    )
    return _each(fleet, job)


def bare_loop(fleet: Fleet, change: Change) -> Sample:
    """The copy and nothing else: the ten files and the archive arrive, in one connection a VM."""
    packed = change.folder / "bare.tgz"
    if not packed.exists():
        subprocess.run(
            [
                "tar",
                "-czf",
                packed,
                "-C",
                change.tree,
                ".",
                "--transform=s,^cloud-scripts,usr/share/cloud/cloud-scripts,",
                "-C",
                change.folder,
                "cloud-scripts.tgz",
            ],
            check=True,
        )
    return _each(fleet, f"ssh -F {fleet.ssh_config()} $1 'tar -xzf - -C / --no-overwrite-dir' < {packed}")


def raw_copy(fleet: Fleet, path: Path, *, safe: bool = False) -> Sample:
    """One large file to every VM at once. `safe`: with its digest computed and the disk synced, as ours does."""
    after = " && sha256sum /var/tmp/raw >/dev/null && sync /var/tmp/raw" if safe else ""
    sample = _each(fleet, f"ssh -F {fleet.ssh_config()} $1 'cat > /var/tmp/raw{after}' < {path}")
    _each(fleet, f"ssh -F {fleet.ssh_config()} $1 'rm -f /var/tmp/raw'")
    return sample


def signature_loop(fleet: Fleet) -> Sample:
    """The least that can be asked over ssh."""
    return _each(fleet, f"ssh -F {fleet.ssh_config()} $1 cat /var/cache/cloud/cloud-scripts-signature >/dev/null")


def _each(fleet: Fleet, job: str) -> Sample:
    addresses = " ".join(fleet.addresses)
    line = f"printf '%s\\n' {addresses} | xargs -P {CONNECTIONS} -n 1 sh -c {shlex.quote(job)} sh"
    return run(fleet, [*fleet.inside(), "sh", "-c", line], log=fleet.work / "loop.log")


def ansible(fleet: Fleet, change: Change, *, guarded: bool = False) -> Sample:
    """The playbook at forks=50, pipelining, ControlPersist, strategy free, no facts. Its connections are new ones."""
    playbook = find_ansible()
    known = fleet.ssh_config()
    sockets = fleet.work / "cp"
    sockets.mkdir(exist_ok=True)
    variables = {
        "change": str(change.folder),
        "files": list(change.files),
        "signature": change.signature,
        "bench": str(_HERE / "playbook"),
        "guarded": guarded,
    }
    env = {
        "ANSIBLE_CONFIG": str(_HERE / "playbook" / "ansible.cfg"),
        "ANSIBLE_HOME": str(fleet.work / "ansible"),
        "ANSIBLE_SSH_ARGS": f"-F {known} -o ControlMaster=auto -o ControlPersist=60s",
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(sockets),
        "ANSIBLE_FORKS": str(CONNECTIONS),
    }
    argv: list[str | Path] = [
        playbook,
        "-i",
        fleet.inventory(),
        "-e",
        json.dumps(variables),
        _HERE / "playbook" / "patch.yml",
    ]
    try:
        return run(fleet, argv, env=env, log=fleet.work / "ansible.log")
    finally:
        for socket in sockets.iterdir():
            subprocess.run(["ssh", "-o", f"ControlPath={socket}", "-O", "exit", "vm"], capture_output=True, check=False)


def find_ansible() -> Path:
    """`BENCH_ANSIBLE` names the environment that `make bench` made. Raises ContestFailed."""
    found = Path(os.environ.get("BENCH_ANSIBLE", ".venv-bench")) / "bin" / "ansible-playbook"
    if not found.exists():
        raise ContestFailed(f"{found} is missing: run `make bench`, or name an environment with BENCH_ANSIBLE")
    return found.absolute()


# Arguments: the VM, the folder with the payload. Everything is copied and unpacked, everything restarted.
_WHOLE = r"""
set -e
scp -q -F {config} {payload}/agent.zip {payload}/cloud-scripts.tgz {payload}/whole.sh $1:/var/tmp/
ssh -F {config} $1 'sh /var/tmp/whole.sh'
"""

_WHOLE_ON_VM = r"""
set -e
cd /var/tmp
mkdir -p /var/lib/whole-backup
cp -a /opt/cloud /etc/cloudstack* /usr/share/cloud /var/lib/whole-backup/
tar -xzf cloud-scripts.tgz -C /
cp cloud-scripts.tgz /usr/share/cloud/
if grep -qE 'type=(secstorage|consoleproxy)' /var/cache/cloud/cmdline; then
    python3 -m zipfile -e agent.zip /usr/local/cloud/systemvm
fi
md5sum cloud-scripts.tgz | cut -d' ' -f1 > /var/cache/cloud/cloud-scripts-signature
for unit in $(cat /var/cache/cloud/enabled_svcs); do systemctl restart "$unit" || true; done
rm -f agent.zip cloud-scripts.tgz whole.sh
rm -rf /var/lib/whole-backup
"""


def one_by_one(fleet: Fleet, change: Change, agent: Path) -> Sample:
    """CloudStack's way, as we read it: VM after VM, the whole payload to each, every enabled service restarted."""
    folder = change.folder / "whole"
    folder.mkdir()
    os.link(agent, folder / "agent.zip")
    os.link(change.scripts, folder / "cloud-scripts.tgz")
    (folder / "whole.sh").write_text(_WHOLE_ON_VM)
    job = _WHOLE.format(config=fleet.ssh_config(), payload=folder)
    line = f"printf '%s\\n' {' '.join(fleet.addresses)} | xargs -P 1 -n 1 sh -c {shlex.quote(job)} sh"
    return run(fleet, ["sh", "-c", line], log=fleet.work / "whole.log")
