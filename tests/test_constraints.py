"""The pinned versions are what setup.cfg allows, what the documentation names, and what the images install."""

import configparser
import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from places import ROOT

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")
UNPINNED = {"vllm"}
"""Extras with versions of their own."""
OF_CUDA = re.compile(r"nvidia-|cuda-|triton$")
IMAGES = {"cpu.Dockerfile": "cpu.txt", "gpu.Dockerfile": "gpu.txt"}


def requirements() -> list[Requirement]:
    """What setup.cfg asks for, extras included."""
    extras = [text for name, text in SETUP["options.extras_require"].items() if name not in UNPINNED]
    lines = "\n".join([SETUP["options"]["install_requires"], *extras]).splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def pins(name: str) -> dict[str, str]:
    """Package -> version, of a file in constraints/ and of those that it names."""
    found: dict[str, str] = {}
    for line in (ROOT / "constraints" / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("--constraint "):
            found |= pins(line.removeprefix("--constraint "))
        elif not line.startswith("#"):
            package, version = re.fullmatch(r"([a-z0-9-]+)==([\w.]+)", line).groups()
            assert package not in found, f"{name}: {package} twice"
            found[package] = version
    return found


@pytest.mark.parametrize("name", ["cpu.txt", "gpu.txt"])
def test_pins_are_within_the_bounds(name):
    pinned = pins(name)
    asked = {canonicalize_name(requirement.name): requirement.specifier for requirement in requirements()}
    assert set(asked) - set(pinned) == set()
    assert [package for package, bounds in asked.items() if pinned[package] not in bounds] == []


def test_a_gpu_differs_by_the_libraries_of_cuda():
    assert [package for package in pins("cpu.txt") if OF_CUDA.match(package)] == []
    assert [package for package in set(pins("gpu.txt")) - set(pins("cpu.txt")) if not OF_CUDA.match(package)] == []


def test_the_documentation_names_the_pinned_versions():
    text = (ROOT / "docs" / "installation.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w-]+)(?: \([^)]*\))? \| [\d.]+ \| ([\d.]+) \|$", text, re.MULTILINE)
    assert len(rows) > 20
    assert {package: version for package, version in rows if pins("cpu.txt")[package] != version} == {}


@pytest.mark.parametrize(("image", "constraint"), IMAGES.items())
def test_images_install_the_pinned_versions(image, constraint):
    """By their file, with extras that there are; every other step of an image needs a machine with docker."""
    text = (ROOT / "docker" / image).read_text(encoding="utf-8")
    assert re.findall(r"--constraint /opt/vlm-posttrain/(\S+)", text) == [f"constraints/{constraint}"]
    (extras,) = re.findall(r"'/opt/vlm-posttrain\[([\w,]+)\]'", text)
    assert set(extras.split(",")) <= set(SETUP["options.extras_require"])
    assert re.search(r"^FROM python:3\.11\.\d+-slim-", text, re.MULTILINE)
