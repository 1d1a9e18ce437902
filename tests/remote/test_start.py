"""The program is sent only where it is not, and what lies on a VM's disk is never run because it is there."""

from __future__ import annotations

import ast
import importlib.util
import io
import marshal
import os
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
from tests.remote.test_session import INTERPRETERS, Client
from tests.remote.vm import VM, make_order

from sysvm.patching import protocol
from sysvm.patching.bundle import bundle
from sysvm.patching.remote import start

PROBE = {"units": [], "paths": ["/"]}
EVIL = "raise SystemExit('run from the disk')\n"


def patched(vm: VM, python: str = sys.executable) -> Path:
    """The folder of the program on a VM that keeps the backup of a patch."""
    client = Client(vm, python)
    assert client.found == "wanted"
    client.prepare(make_order())
    assert client.get(protocol.RunResult, "run", {"id": "op-1"})["report"]["phase"] == "Committed"
    client.close()
    return vm.root / "var/lib/sysvm/program" / bundle().digest


def look(vm: VM, python: str = sys.executable) -> str:
    """One look; says whether the program had to be sent for it."""
    client = Client(vm, python)
    assert client.hello["program"] == bundle().digest
    assert client.get(protocol.ProbeResult, "probe", PROBE)["type"] == "router"
    client.close()
    return client.found


@pytest.mark.parametrize("python", INTERPRETERS)
def test_a_vm_that_keeps_the_program_is_not_sent_it_again(vm, python):
    folder = patched(vm, python)
    assert (folder / "sysvm.pyz").read_bytes() == bundle().content
    assert look(vm, python) == "kept"


def test_a_look_at_a_vm_that_was_never_patched_leaves_nothing(vm):
    assert look(vm) == "wanted"
    assert not (vm.root / "var/lib/sysvm").exists()


@pytest.mark.parametrize("harm", ["damaged", "cut", "link", "pipe", "folder", "stranger", "gone"])
def test_what_is_not_exactly_this_program_is_not_run(vm, harm):
    place = patched(vm) / "sysvm.pyz"
    content = place.read_bytes()
    if harm == "damaged":
        place.write_bytes(content.replace(b"def do_probe", b"def do_prune", 1))
    elif harm == "cut":
        place.write_bytes(content[:-1])
    elif harm == "stranger":
        if os.geteuid() != 0:
            pytest.skip("giving a file away needs root")
        os.chown(place, 12345, 12345)
    else:
        place.unlink()
    if harm == "link":
        (vm.base / "elsewhere").write_bytes(content)
        place.symlink_to(vm.base / "elsewhere")
    elif harm == "pipe":
        os.mkfifo(place)
    elif harm == "folder":
        place.mkdir()
    assert look(vm) == "wanted"


def compiled_by(folder: Path) -> Path:
    (found,) = folder.glob("compiled-*")
    return found


def modules(folder: Path) -> start.Modules:
    return start.Modules((folder / "sysvm.pyz").read_bytes(), str(folder))


def test_what_was_compiled_is_compiled_once(vm, monkeypatch):
    folder = patched(vm)
    found = modules(folder)
    names = {f"{start.PACKAGE}.{path.stem}" for path in Path(start.__file__).parent.glob("*.py")}
    assert set(found.codes) == names - {f"{start.PACKAGE}.__init__"} | {start.PACKAGE}
    monkeypatch.setattr("builtins.compile", None)
    assert found.code(f"{start.PACKAGE}.serve").co_name == "<module>"


@pytest.mark.parametrize("harm", ["one bit", "cut", "empty", "another program's", "another Python's", "open to others"])
def test_compiled_code_that_does_not_fit_is_done_without(vm, harm):
    folder = patched(vm)
    place = compiled_by(folder)
    content = bytearray(place.read_bytes())
    if harm == "one bit":
        content[len(content) // 2] ^= 1
    elif harm == "cut":
        del content[-100:]
    elif harm == "empty":
        content.clear()
    elif harm == "another program's":
        content[0] ^= 1
    elif harm == "another Python's":
        content[32] ^= 1
    elif harm == "open to others":
        place.chmod(0o620)
    place.write_bytes(content)
    assert modules(folder).codes == {}
    assert look(vm) == "kept"


def test_compiled_code_that_fits_is_what_runs(vm):
    """Without this the test above would pass if nothing were ever taken from the disk."""
    folder = patched(vm)
    found = modules(folder)
    found.codes[f"{start.PACKAGE}.main"] = compile(EVIL, "main.py", "exec")
    body = marshal.dumps(found.codes)
    compiled_by(folder).write_bytes(found.head(body) + body)
    with pytest.raises(AssertionError, match="run from the disk"):
        Client(vm)


def test_a_disk_without_room_for_compiled_code_does_not_matter(tmp_path):
    program = bundle().content
    found = start.Modules(program, str(tmp_path))
    found.keep(str(tmp_path / "missing"))
    assert list(tmp_path.iterdir()) == []


def test_the_head_names_program_python_and_content(tmp_path):
    found = start.Modules(bundle().content, str(tmp_path))
    head = found.head(b"body")
    assert head.startswith(found.digest + importlib.util.MAGIC_NUMBER)
    assert head != found.head(b"bode")
    assert len(head) == len(found.head(b""))


def test_what_travels_is_the_program_without_its_words():
    def spoken(tree: ast.Module) -> list[str]:
        return [text for node in ast.walk(tree) if (text := words(node)) is not None]

    def words(node: ast.AST) -> str | None:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return node.value.value
        return None

    def said(tree: ast.Module) -> list[tuple[int, str]]:
        """Every statement with its line, docstrings apart."""
        kept = [node for node in ast.walk(tree) if isinstance(node, ast.stmt) and words(node) is None]
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                node.body = [one for one in node.body if words(one) is None] or [ast.Pass(lineno=1, col_offset=0)]
        return [(node.lineno, ast.dump(node)) for node in kept if not isinstance(node, ast.Pass)]

    with zipfile.ZipFile(io.BytesIO(bundle().content)) as archive:
        for path in sorted(Path(start.__file__).parent.glob("*.py")):
            sent = archive.read(f"{start.PACKAGE}/{path.name}").decode()
            assert spoken(ast.parse(sent)) == []
            assert said(ast.parse(sent)) == said(ast.parse(path.read_text())), path.name
    assert len(bundle().packed) < 0.8 * len(
        zlib.compress(b"".join(map(Path.read_bytes, sorted(Path(start.__file__).parent.glob("*.py")))), 9)
    )
