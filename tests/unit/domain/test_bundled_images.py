"""CloudStack's metadata.ini: what it names becomes a release, and what it is not is said in a sentence."""

from __future__ import annotations

import pytest
import yaml
from click.testing import CliRunner

from sysvm.api.images import ImageHypervisor
from sysvm.api.template import SystemVMTemplate
from sysvm.domain.bundled_images import NotMetadataError, read_metadata
from sysvm.operator.main import main

MD5, SHA512 = "c5dd4ea1e7f8f36ff1e5d5d0a3f2d1b7", "ab" * 64
PLACE = "https://images.example/systemvm/4.20"


def section(name: str, template: str, **values: str) -> str:
    wanted = {"templatename": template, "checksum": MD5, "downloadurl": f"{PLACE}/{template}.bz2", **values}
    return f"\n[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in wanted.items() if value)


HEAD = "\n[default]\nversion = 4.20.2.0\n"
TEXT = (
    HEAD
    + section("vmware", "systemvm-vmware-4.20.2-x86_64", filename="a.ova", guestos="Debian GNU/Linux 12 (64-bit)")
    + section("kvm-x86_64", "systemvm-kvm-4.20.2-x86_64", arch="x86_64")
    + section("kvm-aarch64", "systemvm-kvm-4.20.2-aarch64", arch="aarch64", checksum=SHA512)
)


def test_every_section_is_an_image() -> None:
    found = read_metadata(TEXT)
    assert found.version == "4.20.2"
    assert found.software_version == "4.20.2.0"
    assert [(image.hypervisor, image.arch, image.name) for image in found.images] == [
        ("KVM", "aarch64", "systemvm-kvm-4.20.2-aarch64"),
        ("KVM", "x86_64", "systemvm-kvm-4.20.2-x86_64"),
        ("VMware", "x86_64", "systemvm-vmware-4.20.2-x86_64"),
    ]
    assert [image.checksum for image in found.images] == [f"sha512:{SHA512}", f"md5:{MD5}", f"md5:{MD5}"]
    assert found.warnings == ()


def test_names_from_before_there_were_architectures_are_read() -> None:
    found = read_metadata("[default]\nversion = 4.19.3.0\n" + section("kvm", "systemvm-kvm-4.19.1"))
    assert (found.version, found.images[0].arch) == ("4.19.1", "x86_64")


def test_one_hypervisor_can_be_asked_for() -> None:
    found = read_metadata(TEXT, hypervisors=[ImageHypervisor.VMWARE])
    assert [image.hypervisor for image in found.images] == ["VMware"]


def test_a_missing_checksum_and_an_unknown_section_are_told() -> None:
    text = HEAD + section("kvm-x86_64", "systemvm-kvm-4.20.2-x86_64", checksum="") + section("bhyve", "x")
    assert read_metadata(text).warnings == (
        "[kvm-x86_64] has no checksum: mode Register needs one",
        "[bhyve] is left out: no hypervisor that is known here",
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "it has no version in a section [default]"),
        ("abc", "this is not CloudStack's metadata.ini: File contains no section headers"),
        ("\x7fELF\x00\x01", "this is not CloudStack's metadata.ini: File contains no section headers"),
        ("[default]\nname = x\n", "it has no version in a section [default]"),
        (HEAD, "the file names no image"),
        (HEAD + "[kvm-x86_64]\nchecksum = 1\n", "[kvm-x86_64] has no templatename and no downloadurl"),
        (HEAD + section("kvm", "ubuntu-24.04"), "[kvm]: name 'ubuntu-24.04' cannot be used"),
        (HEAD + section("kvm", "systemvm-kvm-4.20.2", checksum="123"), "neither MD5, SHA-256 nor SHA-512"),
        (HEAD + section("kvm", "systemvm-kvm-4.20.2", checksum="z" * 32), "[kvm]: checksum"),
        (HEAD + section("kvm", "systemvm-kvm-4.20.2", arch="riscv64"), "[kvm]: arch 'riscv64' cannot be used"),
        (HEAD + section("kvm", "systemvm-kvm-4.20.2", downloadurl="ftp://x/y"), "[kvm]: url 'ftp://x/y'"),
        (
            HEAD + section("kvm", "systemvm-kvm-4.20.2") + section("kvm-x86_64", "systemvm-kvm-4.20.2-x86_64"),
            "[kvm-x86_64]: there is another image for KVM x86_64",
        ),
        (
            HEAD + section("kvm", "systemvm-kvm-4.20.2") + section("vmware", "systemvm-vmware-4.20.1"),
            "the images are of different versions: [kvm] 4.20.2, [vmware] 4.20.1; a release has one",
        ),
        (HEAD + section("kvm", "a") + section("kvm", "b"), "section 'kvm' already exists"),
    ],
)
def test_what_is_no_metadata_is_said_in_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(NotMetadataError) as refused:
        read_metadata(text)
    assert sentence in str(refused.value)


def test_the_command_prints_a_manifest() -> None:
    result = CliRunner().invoke(main, ["template", "import", "--hypervisor", "kvm", "-"], input=TEXT)
    assert result.exit_code == 0, result.output
    printed = yaml.safe_load(result.stdout)
    assert printed == read_metadata(TEXT, hypervisors=[ImageHypervisor.KVM]).manifest()
    assert printed["metadata"]["name"] == "systemvm-4.20.2"


def test_the_command_says_what_it_left_out_beside_the_manifest() -> None:
    result = CliRunner().invoke(main, ["template", "import", "-"], input=TEXT + section("bhyve", "x"))
    assert "[bhyve] is left out" in result.stderr
    assert "bhyve" not in result.stdout


def test_the_command_refuses_what_is_no_metadata() -> None:
    result = CliRunner().invoke(main, ["template", "import", "-"], input="abc")
    assert result.exit_code == 1
    assert "this is not CloudStack's metadata.ini" in result.stderr
    assert result.stdout == ""


def test_what_is_printed_is_a_release_that_takes_its_payload_from_the_hosts() -> None:
    release = SystemVMTemplate.model_validate(read_metadata(TEXT).manifest())
    assert release.spec.payload.host is not None
    assert release.spec.images is not None
    assert len(release.spec.images.items) == 3
