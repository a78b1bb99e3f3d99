"""What MkDocs does for this site beside its own work.

- Pages from outside of docs/ (``PAGES``) are part of the site, the README as its first.
- Notebooks below docs/ are pages as well: what they say, and their code.
- Links between pages and files are written as they work in the repository. Here they are made to
  work in the site too: one to a file of the repository leads to a page that shows it.
- A page that would load something from another host fails the build.
- Docstrings may name objects by Sphinx's roles, and hold doctests.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
#: Pages of the site by files of the repository that are not in docs/.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
#: Where the site shows other files of the repository.
SHOWN = "files"

_FENCE = re.compile(r"^(```.*?^```)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<=\]\()(?!\w+:|/|#)([^)#\s]+)")
_LOADED = re.compile(
    r"<(?:script|img|iframe|video|source|link)\b[^>]*?\s(?:src|href)=[\"']?(?:https?:)?//[^>]*>"
)
_ROLE = re.compile(r":\w+:`(~?)([^`]+)`")
_DOCTEST = re.compile(r"^(?:(?:>>>|\.\.\.) .*\n?)+", re.MULTILINE)
#: Two names that a docstring explains together.
_TOGETHER = re.compile(r"^( +)(\w+), (\w+): (.*(?:\n\1 +.*)*)", re.MULTILINE)
_LANGUAGES = {".py": "python", ".toml": "toml", ".sh": "bash", ".yaml": "yaml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from elsewhere, and a page for each file that some page links to."""
    for path, uri in PAGES.items():
        files.append(File.generated(config, uri, content=(ROOT / path).read_text()))
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        uri = _in_site(f"docs/{notebook.src_uri}")
        files.append(File.generated(config, uri, content=_cells(notebook.content_string)))
    wanted = {path for file in files.documentation_pages() for path in _linked(file)}
    for target in sorted(wanted):
        # A folder is shown with what is in it.
        for path in [target, *_listed(target)]:
            uri = f"{SHOWN}/{path}.md"
            if uri not in files.src_uris:
                files.append(File.generated(config, uri, content=_show(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of a page into links of the site."""
    here = page.file.src_uri
    if here.startswith(f"{SHOWN}/"):
        return markdown
    folder = posixpath.dirname(_in_repository(here))

    def replace(link: re.Match[str]) -> str:
        uri = _in_site(posixpath.normpath(posixpath.join(folder, link[1])))
        return posixpath.relpath(uri, posixpath.dirname(here) or ".")

    parts = _FENCE.split(markdown)
    return "".join(p if p.startswith("```") else _LINK.sub(replace, p) for p in parts)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse what would be loaded from another host when the page is opened."""
    found = [tag for tag in _LOADED.findall(output) if 'rel="canonical"' not in tag]
    if found:
        raise PluginError(f"{page.file.src_uri} loads from another host: {', '.join(found)}")
    return output


def _in_repository(uri: str) -> str:
    """Path of a page in the repository."""
    return next((path for path, page in PAGES.items() if page == uri), f"docs/{uri}")


def _in_site(path: str) -> str:
    """Source of the page, or the file, of the site that a path of the repository leads to."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return re.sub(r"\.ipynb$", ".md", path.removeprefix("docs/"))
    return f"{SHOWN}/{path}.md"


def _cells(notebook: str) -> str:
    """The cells of a notebook as Markdown."""
    page = []
    for cell in json.loads(notebook)["cells"]:
        text = "".join(cell["source"])
        page.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(page)


def _linked(page: File) -> Iterator[str]:
    """Files and folders of the repository that a page links to and that are no pages."""
    folder = posixpath.dirname(_in_repository(page.src_uri))
    text = "".join(part for part in _FENCE.split(page.content_string) if part[:3] != "```")
    for link in _LINK.findall(text):
        path = posixpath.normpath(posixpath.join(folder, link))
        if _in_site(path).startswith(f"{SHOWN}/") and (ROOT / path).exists():
            yield path


def _listed(path: str) -> list[str]:
    """Paths of the text files below a folder."""
    below = sorted(p for p in (ROOT / path).rglob("*") if p.is_file() and p.suffix in _LANGUAGES)
    return [p.relative_to(ROOT).as_posix() for p in below]


def _show(path: str) -> str:
    """A page that shows a file, or lists a folder."""
    listed = _listed(path)
    if (ROOT / path).is_dir():
        depth = posixpath.dirname(path)
        rows = [f"- [{p}]({posixpath.relpath(p, depth or '.')}.md)" for p in listed]
        return "\n".join([f"# {path}/", "", *rows])
    language = _LANGUAGES.get(Path(path).suffix, "text")
    return f"# {path}\n\n````{language}\n{(ROOT / path).read_text()}\n````\n"


class Docstrings(griffe.Extension):
    """Turns what Markdown does not know in docstrings into Markdown."""

    def on_package(self, *, pkg: griffe.Module, **_: object) -> None:
        """Rewrite the docstring of the package, which is no object of another."""
        self.on_object(obj=pkg)

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring:
            text = _ROLE.sub(lambda role: _reference(obj, role), obj.docstring.value)
            text = _TOGETHER.sub(r"\1\2: \4\n\1\3: \4", text)
            obj.docstring.value = _DOCTEST.sub(lambda lines: _code(lines[0]), text)


def _reference(obj: griffe.Object, role: re.Match[str]) -> str:
    """What a role names: a link, where a page of the site has it."""
    name = role[2]
    try:
        path = name if name.startswith("cosmos_hpc.") else obj.resolve(name)
    except griffe.NameResolutionError:
        return f"`{name}`"
    shown = name.rpartition(".")[2] if role[1] else name
    return f'<autoref identifier="{path}" optional><code>{shown}</code></autoref>'


def _code(doctest: str) -> str:
    """Lines of a doctest as a block of Python."""
    lines = [re.sub(r"\s*# doctest:.*", "", line[4:]) for line in doctest.splitlines()]
    return "\n".join(["```python", *lines, "```", ""])
