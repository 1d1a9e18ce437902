import shutil
from collections.abc import Iterator

import pytest
from tests.remote.vm import VM, scratch_folder

from sysvm.patching.remote import files


@pytest.fixture
def vm() -> Iterator[VM]:
    base = scratch_folder()
    files.FAULTS.mode = None
    yield VM(base).lay_out()
    files.FAULTS.mode = None
    shutil.rmtree(base)
