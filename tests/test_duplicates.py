"""No block of six or more lines of code stands twice in the product."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("trainers", "rollouts", "rewards", "models", "data", "filter_agents")
BLOCK = 6
"""Lines."""
LITERALS = (ast.Dict, ast.List, ast.Set, ast.Tuple)


def _is_data(node: ast.AST) -> bool:
    """A literal of nothing but constants and literals."""
    if isinstance(node, LITERALS):
        return all(_is_data(child) for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr_context))
    return isinstance(node, ast.Constant | ast.UnaryOp)


def _left_aside(node: ast.AST) -> bool:
    """Docstrings, imports and data."""
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return is_text or isinstance(node, ast.Import | ast.ImportFrom) or (isinstance(node, LITERALS) and _is_data(node))


def code_lines(source: str) -> Iterator[tuple[int, str]]:
    """(number, text) of the lines that count: without comments, what is left aside, and lines of brackets alone."""
    aside = {
        number
        for node in ast.walk(ast.parse(source))
        if _left_aside(node)
        for number in range(node.lineno, node.end_lineno + 1)
    }
    for number, line in enumerate(source.splitlines(), start=1):
        text = " ".join(line.split("  #")[0].split())
        if number not in aside and not text.startswith("#") and any(character.isalnum() for character in text):
            yield number, text


def blocks_that_stand_twice(sources: dict[str, str]) -> list[str]:
    """The places of each block, but the rest of a longer one, as `a.py:3 and b.py:40: first line`."""
    places = defaultdict(list)
    for name, source in sources.items():
        lines = list(code_lines(source))
        for start in range(len(lines) - BLOCK + 1):
            places[tuple(text for _, text in lines[start : start + BLOCK])].append((name, lines[start][0], start))
    found, rest = [], set()
    for block, where in places.items():
        if len(where) > 1:
            if not {(name, start - 1) for name, _, start in where} <= rest:
                found.append(f"{' and '.join(f'{name}:{number}' for name, number, _ in where)}: {block[0]}")
            rest |= {(name, start) for name, _, start in where}
    return found


def test_no_block_of_code_stands_twice():
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    sources = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}
    assert blocks_that_stand_twice(sources) == []


def test_a_copied_block_is_named():
    block = "\n".join(f"value = work(value, {number})" for number in range(BLOCK))
    copies = {"a.py": f'"""Text."""\n\n{block}\nend(value)', "b.py": f"import os\n\n# again\n{block}\n\nother(value)"}
    assert blocks_that_stand_twice(copies) == ["a.py:3 and b.py:4: value = work(value, 0)"]
    assert blocks_that_stand_twice({"a.py": block, "b.py": block.rpartition("\n")[0]}) == []


def test_data_imports_and_docstrings_may_stand_twice():
    rows = "\n".join(f"    {number}: 'text'," for number in range(BLOCK))
    imports = "\n".join(f"import module{number}" for number in range(BLOCK))
    source = f'"""One.\n{imports}\n"""\n{imports}\nTABLE = {{\n{rows}\n}}'
    assert blocks_that_stand_twice({"a.py": source, "b.py": source}) == []
