"""How the reference shows docstrings: examples as code, and a setting with its default and help text."""

import ast
import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^>>> .*?(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)


class ReadableDocstrings(griffe.Extension):
    """Fences examples, and takes the `help` of a dataclass field as its docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(r"```python\n\g<0>\n```", obj.docstring.value)

    def on_attribute(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        given = setting(str(attr.value))
        if given is not None and attr.docstring is None:
            attr.value, text = given
            attr.docstring = griffe.Docstring(text, parent=attr)


def setting(value: str) -> tuple[str | None, str] | None:
    """The default, if it is a value, and the help text of a `field(...)` that has a plain one.

    >>> setting("field(default=3, metadata={'help': 'Evaluations without progress.'})")
    ('3', 'Evaluations without progress.')
    """
    if not value.startswith("field("):
        return None
    given = {keyword.arg: keyword.value for keyword in ast.parse(value, mode="eval").body.keywords}
    if isinstance(given.get("metadata"), ast.Dict):
        for key, text in zip(given["metadata"].keys, given["metadata"].values, strict=True):
            if isinstance(key, ast.Constant) and key.value == "help" and isinstance(text, ast.Constant):
                return ast.unparse(given["default"]) if "default" in given else None, text.value
    return None
