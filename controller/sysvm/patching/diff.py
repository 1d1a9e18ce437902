"""What a payload means for one VM: pure, from the payload, the facts of its files and the table of owners.

The result says it twice: as a report for people (changed, missing, extra) and as the parts of an order for the VM. Both
come from the same list of changes, so what is reported is what would be done.
"""

import hashlib
import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from sysvm.api.endpoint import SystemVMType
from sysvm.api.observed import ContentState
from sysvm.api.reasons import Reason
from sysvm.patching import conntrackd, order_words, packages, protocol
from sysvm.patching.archives import FileEntry
from sysvm.patching.databags import Databag, databags_for
from sysvm.patching.firewall import Rules, changed_rules, templates_of
from sysvm.patching.merge import MERGES
from sysvm.patching.ownership import ActionKind, FileRule, Owner, rule_for
from sysvm.patching.packages import Packages
from sysvm.patching.payload import Payload
from sysvm.patching.results import ContentReport, Obstacle
from sysvm.patching.services import Later, UnitAction, is_meant, plain, service_built_from, service_of, strongest

SCRIPTS_TREE = "/opt/cloud"
AGENT_TREE = "/usr/local/cloud/systemvm"
AGENT_UNIT = "cloud"
AGENT_RUNTIME = ("conf/*", "certs/realhostip.keystore", "*.log", "*.log.*")
"""Written by boot scripts, the agent and the management server (CloudStack 4.21 bootstrap.sh, keystore-setup,
keystore-cert-import, config_ssl.sh): kept whatever agent.zip brings; only what is missing is put there."""

AGENT_PROPERTIES = "conf/agent.properties"
_DROPPED_KEYS = frozenset({"instance", "resource"})
"""The boot takes them out on an SSVM (CloudStack 4.21 bootstrap.sh), so that they are missing is no oversight. The old
package is not on the VM any more, so there is nothing else to tell a new key from one that was taken out."""

_SHOWN_PATHS = 10
_NEW_FILE_MODE = 0o644
_EXECUTABLE_MODE = 0o755
_AGENT_SCRIPT_MODE = 0o555


class PackageAction(StrEnum):
    INSTALL = "Install"
    REMOVE = "Remove"


class ChangeKind(StrEnum):
    CHANGED = "changed"
    MISSING = "missing"
    EXTRA = "extra"
    """The payload that is on the VM had it and the new one has not."""


@dataclass(frozen=True, slots=True)
class Change:
    """One path of the VM that differs. `path` is absolute; `entry` is None for `EXTRA`."""

    path: str
    kind: ChangeKind
    entry: order_words.FileEntry | None
    rule: FileRule | None
    """None: a file of the agent, or a link of a Debian package."""


@dataclass(frozen=True, slots=True)
class Difference:
    """All that differs, and what it asks for."""

    scripts: tuple[Change, ...]
    agent: tuple[Change, ...] | None
    """None: this type runs no agent, or the payload has none."""
    kept: tuple[str, ...]
    """Edited files whose own lines are kept although the payload brings another text."""
    contents: Mapping[str, bytes]
    """Merged texts by sha256: what the payload itself does not hold."""
    revision: str
    vm_type: SystemVMType
    rules: Mapping[str, Rules] = field(default_factory=dict)
    """By template (no leading slash): firewall rules of this type that change."""
    packages: Packages = field(default_factory=Packages)
    """Debian packages that the payload needs here and the VM lacks."""
    agent_keys: tuple[str, ...] = ()
    """Lines of the packaged agent.properties whose keys the VM may lack."""

    @property
    def scripts_report(self) -> ContentReport:
        report = replace(_report(self.revision, self.scripts), obstacles=self.obstacles)
        return replace(report, state=ContentState.DRIFTED) if self.packages.install else report

    @property
    def package_actions(self) -> tuple[tuple[str, PackageAction], ...]:
        """What is done to which Debian package, before anything else."""
        install = [(str(deb), PackageAction.INSTALL) for deb in self.packages.install]
        return (*((name, PackageAction.REMOVE) for name in self.packages.remove), *install)

    @property
    def rules_later(self) -> tuple[tuple[str, UnitAction | Later, str], ...]:
        """(template, when, what) of every firewall rule that this changes, but not now."""
        taken = Later.NEXT_COMMAND if self.vm_type.is_router else UnitAction.EFFECTIVE_AT_BOOT
        told: list[tuple[str, UnitAction | Later, str]] = []
        for name, rules in self.rules.items():
            told += [(name.rpartition("/")[2], taken, f"taken away: {rule}") for rule in rules.taken]
            told += [(name.rpartition("/")[2], UnitAction.EFFECTIVE_AT_BOOT, f"added: {rule}") for rule in rules.added]
        return tuple(told)

    @property
    def obstacles(self) -> tuple[Obstacle, ...]:
        """Why it must not be carried out on a running VM; empty: nothing is in the way."""
        found = []
        for name, rules in self.rules.items():
            if rules.management_port:
                told = f"/{name} changes the way in on port 3922 ({'; '.join(rules.management_port)[:300]})"
                said = f"{told}: the next command would take the running rule away; recreate the VM instead"
                found.append(Obstacle(Reason.MANAGEMENT_PORT_RULE_CHANGED, said))
        return (*found, *self.packages.obstacles)

    @property
    def agent_report(self) -> ContentReport | None:
        return _report(self.revision, self.agent) if self.agent is not None else None

    @property
    def databags(self) -> tuple[Databag, ...]:
        """What of it takes effect only when configure.py applies a data bag."""
        return databags_for((change.path for change in self.scripts), self.vm_type)

    @property
    def daemon_reload(self) -> bool:
        return any(change.rule is not None and change.rule.daemon_reload for change in self.scripts)

    def unit_actions(self, units: Iterable[str], *, can_hold: bool = False) -> dict[str, UnitAction]:
        """The least action for each of these units (instances spelled out), without those that nothing touches.

        `can_hold`: this VM can keep requests waiting while a service restarts.
        """
        wanted: dict[str, list[UnitAction]] = {}
        for unit in units:
            for change in self.scripts:
                action = _action_on(unit, change, self.vm_type, can_hold=can_hold)
                if action is not UnitAction.NOTHING:
                    wanted.setdefault(unit, []).append(action)
            if self.agent and plain(unit) == AGENT_UNIT:
                wanted.setdefault(unit, []).append(UnitAction.STOP_START)
        return {unit: strongest(actions) for unit, actions in wanted.items()}

    def trees(self) -> list[order_words.TreeOrder]:
        """Folders that change, switched as one each."""
        trees = [_tree(SCRIPTS_TREE, [change for change in self.scripts if _below(change.path, SCRIPTS_TREE)], ())]
        agent = _tree(AGENT_TREE, list(self.agent or ()), AGENT_RUNTIME)
        agent["properties"] = [{"path": AGENT_PROPERTIES, "lines": list(self.agent_keys)}]
        trees.append(agent)
        return [tree for tree in trees if tree["files"] or tree["remove"]]

    def single_files(self) -> list[order_words.FileEntry]:
        return [change.entry for change in self._single() if change.entry is not None]

    def single_removals(self) -> list[str]:
        return [change.path for change in self._single() if change.entry is None]

    def single_folders(self) -> list[order_words.FolderEntry]:
        """Every folder above a file that is missing; the VM makes those that it lacks. Of `/` it lacks none."""
        missing = [change.path for change in self._single() if change.kind is ChangeKind.MISSING]
        return [_folder(path) for path in _parents(missing, above="/") if path.count("/") > 1]

    def _single(self) -> list[Change]:
        return [change for change in self.scripts if not _below(change.path, SCRIPTS_TREE)]


@dataclass(frozen=True, slots=True)
class Previous:
    """The payload that is on the VM, as its own /usr/share/cloud/cloud-scripts.tgz lists it."""

    entries: Mapping[str, FileEntry] = field(default_factory=dict)


def digest_args(
    payload: Payload, vm_type: SystemVMType, previous: Previous, *, debian_version: str | None = None
) -> protocol.DigestArgs:
    """What to ask the VM for, so that `compare` knows every file concerned."""
    names = set(payload.scripts.entries) | set(previous.entries)
    roots = [SCRIPTS_TREE]
    if payload.agent is not None and vm_type.runs_agent:
        roots.append(AGENT_TREE)
    singles = sorted(
        {f"/{name}" for name in names if not _below(f"/{name}", SCRIPTS_TREE)}
        | {conntrackd.CONFIGURATION, *packages.links_to_look_at(payload, debian_version)}
    )
    args: protocol.DigestArgs = {"paths": singles, "roots": roots, "exclude": []}
    if asked := packages.names_to_ask_for(payload, debian_version):
        args["packages"] = asked
    return args


def contents_to_read(
    payload: Payload, vm_type: SystemVMType, previous: Previous, facts: Mapping[str, protocol.FileFact]
) -> list[str]:
    """Absolute paths of live files that must be merged: edited, and neither the new nor the old packaged text."""
    paths = []
    for name, entry in payload.scripts.entries.items():
        rule = rule_for(name, vm_type)
        if name not in MERGES or rule.owner is not Owner.EDITED or rule.ignored:
            continue
        live = _live_digest(facts.get(f"/{name}"))
        if live is not None and live != entry.sha256 and live != _packaged(previous, name):
            paths.append(f"/{name}")
    for name in templates_of(vm_type):
        template, there = payload.scripts.entries.get(name), _live_digest(facts.get(f"/{name}"))
        if template is not None and there not in (None, template.sha256):
            paths.append(f"/{name}")
    return paths + _conntrackd_to_read(payload, facts)


def _changed_rules(payload: Payload, vm_type: SystemVMType, live_contents: Mapping[str, bytes]) -> Mapping[str, Rules]:
    found = {}
    for name in templates_of(vm_type):
        live = live_contents.get(f"/{name}")
        if live is not None and name in payload.scripts.entries:
            found[name] = changed_rules(live, payload.script_text(name))
    return found


def _conntrackd_to_read(payload: Payload, facts: Mapping[str, protocol.FileFact]) -> list[str]:
    """Both texts of conntrackd, if its template changes on a router that runs with it."""
    entry = payload.scripts.entries.get(conntrackd.TEMPLATE)
    paths = [f"/{conntrackd.TEMPLATE}", conntrackd.CONFIGURATION]
    live = [_live_digest(facts.get(path)) for path in paths]
    return paths if entry is not None and None not in live and live[0] != entry.sha256 else []


def compare(
    payload: Payload,
    vm_type: SystemVMType,
    previous: Previous,
    facts: Mapping[str, protocol.FileFact],
    live_contents: Mapping[str, bytes],
    *,
    debian_version: str | None = None,
    states: Iterable[protocol.PackageFact] = (),
) -> Difference:
    """Everything that differs between the VM and the payload. `live_contents`: what `contents_to_read` asked for;
    `states`: of the Debian packages that `digest_args` asked for."""
    changes: list[Change] = []
    kept: list[str] = []
    merged: dict[str, bytes] = {}
    for name, entry in sorted(payload.scripts.entries.items()):
        path = f"/{name}"
        rule, fact = rule_for(name, vm_type), facts.get(path)
        if rule.ignored or (rule.owner is Owner.RUNTIME and not _absent(fact)):
            continue
        digest, size = entry.sha256, entry.size
        live = _live_digest(fact)
        if rule.owner is Owner.EDITED and live is not None and live not in (digest, _packaged(previous, name)):
            if path not in live_contents:
                kept.append(path)
                continue
            text = MERGES[name](live_contents[path], payload.script_text(name))
            digest, size = hashlib.sha256(text).hexdigest(), len(text)
            merged[digest] = text
            if digest == live:
                continue
        change = _scripts_change(path, entry, digest, size, rule, fact)
        if change is not None and name == conntrackd.TEMPLATE and conntrackd.CONFIGURATION in live_contents:
            configuration = _conntrackd_text(payload, live_contents)
            if configuration is None:
                kept.append(path)
                continue
            made = _conntrackd_change(configuration, facts[conntrackd.CONFIGURATION])
            if made is not None:
                merged[hashlib.sha256(configuration).hexdigest()] = configuration
                changes.append(made)
        if change is not None:
            changes.append(change)
    changes += _extra_scripts(payload, vm_type, previous, facts)
    needed = packages.packages_for(payload, debian_version, {state["name"]: state for state in states}, facts)
    changes += [_link_change(path, target, facts.get(path)) for path, target in needed.links.items()]
    agent = _agent_changes(payload, facts) if payload.agent is not None and vm_type.runs_agent else None
    wanted = {change.entry["sha256"] for change in changes if change.entry is not None}
    return Difference(
        scripts=tuple(sorted(changes, key=lambda change: change.path)),
        agent=agent,
        kept=tuple(kept),
        contents={digest: text for digest, text in merged.items() if digest in wanted},
        revision=payload.revision,
        vm_type=vm_type,
        rules=_changed_rules(payload, vm_type, live_contents),
        packages=needed,
        agent_keys=_agent_keys(payload),
    )


def _action_on(unit: str, change: Change, vm_type: SystemVMType, *, can_hold: bool) -> UnitAction:
    """What one changed file asks of one unit."""
    rule = change.rule
    if rule is not None and rule.unit is not None and is_meant(unit, rule.unit):
        service = service_of(unit)
        if rule.action is ActionKind.RELOAD:
            return UnitAction.RELOAD
        return service.restart(vm_type, can_hold=can_hold) if service is not None else UnitAction.RESTART
    built = service_built_from(change.path.lstrip("/"), vm_type)
    if built is not None and is_meant(unit, built.unit):
        return UnitAction.EFFECTIVE_AT_BOOT
    return UnitAction.NOTHING


def _scripts_change(
    path: str, entry: FileEntry, digest: str, size: int, rule: FileRule, fact: protocol.FileFact | None
) -> Change | None:
    kind = _difference(fact, digest, executable=entry.executable if rule.payload_mode else None)
    if kind is None:
        return None
    mode = _EXECUTABLE_MODE if rule.payload_mode and entry.executable else _NEW_FILE_MODE
    wanted = _file_entry(path, digest, size, mode, fact, executable=entry.executable if rule.payload_mode else None)
    return Change(path, kind, wanted, rule)


def _conntrackd_text(payload: Payload, live_contents: Mapping[str, bytes]) -> bytes | None:
    old, live = live_contents.get(f"/{conntrackd.TEMPLATE}"), live_contents[conntrackd.CONFIGURATION]
    if old is None:
        return None
    return conntrackd.configuration(old, live, payload.script_text(conntrackd.TEMPLATE))


def _conntrackd_change(text: bytes, fact: protocol.FileFact) -> Change | None:
    digest = hashlib.sha256(text).hexdigest()
    if fact["sha256"] == digest:
        return None
    entry = _file_entry(conntrackd.CONFIGURATION, digest, len(text), _NEW_FILE_MODE, fact, executable=None)
    rule = FileRule(Owner.RUNTIME, ActionKind.RESTART, "conntrackd", False, False, False)
    return Change(conntrackd.CONFIGURATION, ChangeKind.CHANGED, entry, rule)


def _link_change(path: str, target: str, fact: protocol.FileFact | None) -> Change:
    entry: order_words.FileEntry = {
        "path": path,
        "sha256": None,
        "size": 0,
        "link": target,
        "mode": 0o777,
        "uid": 0,
        "gid": 0,
        "keep_mode": True,
        "keep_owner": True,
        "executable": None,
    }
    return Change(path, ChangeKind.MISSING if _absent(fact) else ChangeKind.CHANGED, entry, None)


def _extra_scripts(
    payload: Payload, vm_type: SystemVMType, previous: Previous, facts: Mapping[str, protocol.FileFact]
) -> list[Change]:
    """Only what the earlier payload brought and nobody has changed since is taken away again."""
    extra = []
    for name in sorted(set(previous.entries) - set(payload.scripts.entries)):
        rule, fact = rule_for(name, vm_type), facts.get(f"/{name}")
        if rule.ignored or rule.owner is not Owner.PACKAGE or fact is None or fact["kind"] not in ("file", "link"):
            continue
        extra.append(Change(f"/{name}", ChangeKind.EXTRA, None, rule))
    return extra


def _agent_changes(payload: Payload, facts: Mapping[str, protocol.FileFact]) -> tuple[Change, ...]:
    agent = payload.agent
    if agent is None:
        return ()
    changes = []
    for name, entry in sorted(agent.entries.items()):
        path = f"{AGENT_TREE}/{name}"
        fact = facts.get(path)
        if _is_agent_runtime(name) and not _absent(fact):
            continue
        executable = True if entry.executable else None
        kind = _difference(fact, entry.sha256, executable=executable)
        if kind is not None:
            mode = _AGENT_SCRIPT_MODE if entry.executable else _NEW_FILE_MODE
            wanted = _file_entry(path, entry.sha256, entry.size, mode, fact, executable=executable)
            changes.append(Change(path, kind, wanted, None))
    # Every jar of the folder is on the agent's class path (CloudStack 4.21 _run.sh): one too many is another program.
    strays = (
        path
        for path, fact in facts.items()
        if posixpath.dirname(path) == AGENT_TREE
        and path.endswith(".jar")
        and fact["kind"] in ("file", "link")
        and posixpath.basename(path) not in agent.entries
    )
    changes += [Change(path, ChangeKind.EXTRA, None, None) for path in sorted(strays)]
    return tuple(changes)


def _agent_keys(payload: Payload) -> tuple[str, ...]:
    if payload.agent is None:
        return ()
    lines = [line.strip() for line in payload.agent.properties.decode("utf-8", "replace").splitlines()]
    wanted = [line for line in lines if "=" in line and line[:1] not in ("#", "!")]
    return tuple(line for line in wanted if line.partition("=")[0].strip() not in _DROPPED_KEYS)


def _is_agent_runtime(name: str) -> bool:
    return name.startswith("conf/") or name == "certs/realhostip.keystore"


def _difference(fact: protocol.FileFact | None, digest: str, *, executable: bool | None) -> ChangeKind | None:
    if _absent(fact):
        return ChangeKind.MISSING
    if fact is None or fact["kind"] != "file" or fact["sha256"] != digest:
        return ChangeKind.CHANGED
    if executable is not None and bool(fact["mode"] & 0o100) is not executable:
        return ChangeKind.CHANGED
    return None


def _file_entry(
    path: str, digest: str, size: int, mode: int, fact: protocol.FileFact | None, *, executable: bool | None
) -> order_words.FileEntry:
    entry: order_words.FileEntry = {
        "path": path,
        "sha256": digest,
        "size": size,
        "link": None,
        "mode": mode,
        "uid": 0,
        "gid": 0,
        "keep_mode": True,
        "keep_owner": True,
        "executable": executable,
    }
    if _absent(fact):
        entry["expect"] = None
    elif fact is not None and fact["kind"] == "file":
        entry["expect"] = fact["sha256"]
    return entry


def _tree(path: str, changes: list[Change], runtime: tuple[str, ...]) -> order_words.TreeOrder:
    files = [_inside(path, change.entry) for change in changes if change.entry is not None]
    missing = [change.path for change in changes if change.kind is ChangeKind.MISSING]
    folders = [_folder(posixpath.relpath(folder, path)) for folder in _parents(missing, above=path)]
    return {
        "path": path,
        "files": files,
        "folders": folders,
        "remove": [posixpath.relpath(change.path, path) for change in changes if change.entry is None],
        "runtime": list(runtime),
    }


def _inside(tree: str, entry: order_words.FileEntry) -> order_words.FileEntry:
    inner = entry.copy()
    inner["path"] = posixpath.relpath(entry["path"], tree)
    return inner


def _folder(path: str) -> order_words.FolderEntry:
    return {"path": path, "mode": 0o755, "uid": 0, "gid": 0}


def _parents(paths: Iterable[str], *, above: str) -> list[str]:
    """All folders between `above` and the paths, outer ones first."""
    found: set[str] = set()
    for path in paths:
        parent = posixpath.dirname(path)
        while parent not in (above, "/", ""):
            found.add(parent)
            parent = posixpath.dirname(parent)
    return sorted(found)


def _report(revision: str, changes: tuple[Change, ...]) -> ContentReport:
    counts = {kind: sum(change.kind is kind for change in changes) for kind in ChangeKind}
    return ContentReport(
        revision=revision,
        state=ContentState.DRIFTED if changes else ContentState.MATCHES,
        changed=counts[ChangeKind.CHANGED],
        missing=counts[ChangeKind.MISSING],
        extra=counts[ChangeKind.EXTRA],
        paths=tuple(sorted(change.path for change in changes)[:_SHOWN_PATHS]),
    )


def _below(path: str, folder: str) -> bool:
    return path.startswith(f"{folder}/")


def _absent(fact: protocol.FileFact | None) -> bool:
    """A path below a listed root that the VM did not mention is not there."""
    return fact is None or fact["kind"] == "absent"


def _live_digest(fact: protocol.FileFact | None) -> str | None:
    return fact["sha256"] if fact is not None and fact["kind"] == "file" else None


def _packaged(previous: Previous, name: str) -> str | None:
    entry = previous.entries.get(name)
    return entry.sha256 if entry is not None else None
