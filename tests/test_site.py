"""The site of the documentation: the same pages as README lists, and a build without a warning."""

import doctest
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
import yaml
from places import ROOT

SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def pages_of(navigation: list | dict | str) -> Iterator[str]:
    """The pages in a part of the navigation."""
    if isinstance(navigation, str):
        yield navigation
    for part in navigation.values() if isinstance(navigation, dict) else navigation:
        if not isinstance(navigation, str):
            yield from pages_of(part)


def test_navigation_has_the_pages_of_the_readme():
    """Each page of docs/ that README lists is in the navigation once, and no other."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Documentation")[2].partition("\n## ")[0]
    listed = re.findall(r"\]\(docs/(\w+\.md)\)", readme)
    shown = [page for page in pages_of(SITE["nav"]) if (ROOT / "docs" / page).is_file()]
    assert sorted(shown) == sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_nothing_is_loaded_from_elsewhere():
    assert SITE["theme"]["font"] is False


@pytest.mark.slow
@pytest.mark.parametrize("name", ["site_hooks", "site_docstrings"])
def test_examples_of_the_site(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    failed, tried = doctest.testmod(module)
    assert (failed, tried > 0) == (0, True)


@pytest.mark.slow
def test_site_is_built_without_a_warning(tmp_path):
    """And no page of it asks another host for anything."""
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path / "site")]
    quiet = {
        **os.environ,
        "NO_MKDOCS_2_WARNING": "1",
    }  # the theme's word on its successor, as `make docs` leaves it out
    built = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    home = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?:', home) == []
    assert (tmp_path / "site" / "reference" / "trainers.grpo.html").is_file()
