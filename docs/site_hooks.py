"""What the site has beyond the pages in docs/: README as its home, the files that pages link to, and the reference.

Links are written for a reader of the repository. Here each is turned to the page that its file has on the site.
"""

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("trainers", "rollouts", "rewards", "filter_agents", "data", "models")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?!https?://|mailto:|#)([^)\s#]+)")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".sh": "bash"}


def site_page(file: str) -> str:
    """Where a file of the repository is among the site's sources.

    >>> [site_page(file) for file in ("README.md", "docs/grpo.md", "CHANGELOG.md", "recipes/vqa_grpo.yaml")]
    ['index.md', 'grpo.md', 'changelog.md', 'files/recipes/vqa_grpo.yaml.md']
    """
    if file == "README.md":
        return "index.md"
    if file.startswith("docs/"):
        return file.removeprefix("docs/")
    if file.endswith(".ipynb"):
        return file.removesuffix(".ipynb") + ".md"
    return file.lower() if file.endswith(".md") else f"files/{file}.md"


def linked_file(link: str, page: str) -> str:
    """The file of the repository that a link on a page of the repository leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def with_site_links(markdown: str, page: str) -> str:
    """A page of the repository with its links turned to the pages of the site.

    >>> with_site_links("[recipe](../recipes/vqa_grpo.yaml), [rewards](rewards.md#the-registry)", "docs/vqa.md")
    '[recipe](files/recipes/vqa_grpo.yaml.md), [rewards](rewards.md#the-registry)'
    """
    here = posixpath.dirname(site_page(page)) or "."
    return LINK.sub(lambda link: posixpath.relpath(site_page(linked_file(link[1], page)), here), markdown)


def pages_and_files() -> Iterator[tuple[str, str]]:
    """(file of the repository, Markdown) of what stands outside docs/ and is the home, or linked from a page."""
    waiting = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
    seen = set(waiting)
    while waiting:
        file = waiting.pop()
        text = (ROOT / file).read_text(encoding="utf-8")
        if file.endswith(".md"):
            linked = {linked_file(link, file) for link in LINK.findall(FENCE.sub("", text))}
            outside = {other for other in linked if other.endswith(".md") or not other.startswith("docs/")}
            waiting += sorted(outside - seen)
            seen |= outside
        if not file.startswith("docs/"):
            yield file, with_site_links(text, file) if file.endswith(".md") else as_page(file, text)


def as_page(file: str, text: str) -> str:
    """A page that shows a notebook's cells with their outputs, or another file's text."""
    if file.endswith(".ipynb"):
        return "\n\n".join(part for cell in json.loads(text)["cells"] for part in cell_parts(cell))
    return f"# {file}\n\n````{LANGUAGES.get(Path(file).suffix, 'text')}\n{text}````\n"


def cell_parts(cell: dict[str, Any]) -> Iterator[str]:
    """Markdown of a cell of a notebook, and of what it printed and drew.

    >>> list(cell_parts({"cell_type": "code", "source": ["1 + 1"], "outputs": [{"data": {"text/plain": ["2"]}}]}))
    ['```python\\n1 + 1\\n```', '```text\\n2\\n```']
    """
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            yield f"![](data:image/png;base64,{''.join(data['image/png']).strip()})"
        else:
            yield f"```text\n{''.join(output.get('text') or data['text/plain']).strip()}\n```"


def public_modules(package: str) -> list[str]:
    """What stands at the top of a package: what one runs or looks up."""
    return [f"{package}.{path.stem}" for path in sorted((ROOT / package).glob("[!_]*.py"))]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Gives headings the addresses that they have in the repository; lists modules under the last subject."""
    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")
    (reference,) = config.nav[-1].values()
    for package in PACKAGES:
        reference.append({package: [{name: f"reference/{name}.md"} for name in public_modules(package)]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are not in docs/."""
    for file, markdown in pages_and_files():
        in_nav = InclusionLevel.INCLUDED if file.endswith((".md", ".ipynb")) else InclusionLevel.NOT_IN_NAV
        files.append(File.generated(config, site_page(file), content=markdown, inclusion=in_nav))
    for package in PACKAGES:
        for name in public_modules(package):
            files.append(File.generated(config, f"reference/{name}.md", content=f"# {name}\n\n::: {name}\n"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns the links of the pages in docs/; the others have theirs turned when they are added."""
    return markdown if page.file.generated_by else with_site_links(markdown, f"docs/{page.file.src_uri}")
