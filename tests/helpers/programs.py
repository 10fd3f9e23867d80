"""Every program of the toolkit, found by looking."""

import ast
import configparser

from places import ROOT


def programs() -> dict[str, ast.FunctionDef]:
    """Module -> `main`, of every module of the installed packages that has one."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    packages = [name.rstrip("*") for name in setup["options.packages.find"]["include"].split()]
    found = {}
    for path in (path for package in packages for path in sorted((ROOT / package).rglob("*.py"))):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name == "main":
                found[".".join(path.relative_to(ROOT).with_suffix("").parts)] = node
    return found
