"""Lays everything that MkDocs builds into one folder: the pages of docs, the README, and what is generated."""

from __future__ import annotations

import os
import posixpath
import re
import shutil
import tempfile
from pathlib import Path, PurePosixPath

from analysis_page import analysis_page, table, title_of
from examples import run_examples
from notebook_pages import notebook_page
from page_words import LANGUAGES, WORDS

from diffai_jupyter.analyses import all_analyses
from diffai_jupyter.arguments import help_text
from diffai_jupyter.contract.declaration import Group
from diffai_jupyter.wording import told

GENERATOR = "site"
OVERVIEW = "analyses.md"
"""The page of all analyses for readers of the repository; the site has a page for each."""
_FENCED = re.compile(r"(^ *```.*?^ *```$)", re.DOTALL | re.MULTILINE)
_WIDE = r"[\u3000-\u30ff\u4e00-\u9fff\uff00-\uffef]"
_WRAPPED = re.compile(rf"(?<={_WIDE})\n *(?={_WIDE})")
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
_SOURCE = re.compile(r"\b(src|srcset)=\"([^\"]+)\"")


def lay(root: Path, folder: Path) -> None:
    """Write the pages of the site, links included, as MkDocs takes them.

    Parameters
    ----------
    root : path
        The repository.
    folder : path
        Where the pages go.
    """
    docs = root / "docs"
    for path in sorted(docs.rglob("*")):
        name = path.relative_to(docs)
        if not path.is_file() or name.parts[0] == GENERATOR or str(name) == OVERVIEW:
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            text = path.read_text(encoding="utf-8")
            page = relinked(unwrapped(text), f"docs/{name.as_posix()}", name.as_posix())
            target.write_text(page, encoding="utf-8")
        else:
            shutil.copy(path, target)
    readme = relinked((root / "README.md").read_text(encoding="utf-8"), "README.md", "index.md")
    (folder / "index.md").write_text(readme, encoding="utf-8")
    for notebook in sorted((root / "notebooks").glob("*.ipynb")):
        _write_notebook(notebook, folder / "notebooks")
    shutil.copy(docs / GENERATOR / "site.css", folder)
    _write_command_line(folder)
    _write_analyses(root, folder)


def _write_notebook(notebook: Path, target: Path) -> None:
    text, pictures = notebook_page(notebook)
    page = relinked(text, f"notebooks/{notebook.name}", f"notebooks/{notebook.stem}.md")
    page += f"\nThe same as a notebook: [{notebook.name}]({notebook.name}).\n"
    target.mkdir(exist_ok=True)
    (target / f"{notebook.stem}.md").write_text(page, encoding="utf-8")
    shutil.copy(notebook, target)
    for name, data in pictures.items():
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_bytes(data)


def _write_command_line(folder: Path) -> None:
    words = WORDS["en"]
    page = f"# {words['command_line']}\n\n{words['command_line_intro']}\n\n```text\n{help_text().strip()}\n```\n"
    (folder / "reference").mkdir(exist_ok=True)
    (folder / "reference" / "command-line.md").write_text(page, encoding="utf-8")


def _write_analyses(root: Path, folder: Path) -> None:
    target = folder / "analyses"
    (target / "images").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        examples = run_examples(root, Path(work))
    for lang in LANGUAGES:
        suffix = ".md" if lang == "en" else f".{lang}.md"
        (target / f"index{suffix}").write_text(_overview(lang), encoding="utf-8")
        for flag, analysis in all_analyses().items():
            page, pictures = analysis_page(analysis, examples[flag], root / "docs", lang)
            (target / f"{flag}{suffix}").write_text(page, encoding="utf-8")
            for name, data in pictures.items():
                (target / name).write_bytes(data)


def _overview(lang: str) -> str:
    words = WORDS[lang]
    parts = [f"# {words['analyses']}", words["analyses_intro"]]
    for group in Group:
        rows = [
            (f"[{title_of(analysis, lang)}]({flag}.md)", f"`--{flag}`", told(analysis.summary, lang))
            for flag, analysis in all_analyses().items()
            if analysis.group is group
        ]
        parts += [f"## {told(group.value, lang)}", table((words["name"], words["flag"], words["what"]), rows)]
    return "\n\n".join(parts) + "\n"


def unwrapped(text: str) -> str:
    r"""Return a page without the ends of lines inside of Japanese sentences, which browsers show as spaces.

    Examples
    --------
    >>> unwrapped("比較\nします。\nA と\n\n- 値\n  です")
    '比較します。\nA と\n\n- 値です'
    """
    return _WRAPPED.sub("", text)


def relinked(text: str, origin: str, page: str) -> str:
    r"""Return a page whose links lead where its targets stand in the site.

    Parameters
    ----------
    text : str
        Markdown, as it is in the repository.
    origin, page : str
        Path of the page in the repository and in the site.

    Examples
    --------
    >>> relinked("[a](docs/gate.md#grammar) [b](LICENSE) [c](docs/analyses.md)", "README.md", "index.md")
    '[a](gate.md#grammar) b [c](analyses/index.md)'
    >>> relinked("[a](../analyses.md#--memory-analysis)", "docs/guides/share.md", "guides/share.md")
    '[a](../analyses/memory-analysis.md)'
    >>> relinked("[en](gate.md)", "docs/gate.ja.md", "gate.ja.md")
    '[en](../../gate/)'
    >>> relinked("[two\nlines](docs/gate.md)\n```\n[x](y.md)\n```", "README.md", "index.md")
    '[two\nlines](gate.md)\n```\n[x](y.md)\n```'
    >>> relinked("[en](../README.md)", "docs/index.ja.md", "index.ja.md")
    '[en](../)'
    """
    # A link may go over the end of a line, so what stands between fenced code is taken as a whole.
    parts = _FENCED.split(text)
    for at in range(0, len(parts), 2):
        part = _LINK.sub(lambda found: _link(found, origin, page), parts[at])
        parts[at] = _SOURCE.sub(lambda found: f'{found[1]}="{_address(found[2], origin, page)}"', part)
    return "".join(parts)


def _link(found: re.Match[str], origin: str, page: str) -> str:
    mark, shown, target = found.groups()
    if re.match(r"[a-z]+:|#", target):
        return found[0]
    path, _, anchor = target.partition("#")
    place = _place(posixpath.normpath(posixpath.join(posixpath.dirname(origin), path)), anchor)
    if place is None:
        return shown
    if _is_own_english(place, page):
        # In Japanese the name leads to the page itself; this link means the longer one in English.
        up = "../" * (page.count("/") + (1 if place == "index.md" else 2))
        away = "" if place == "index.md" else f"{place.removesuffix('.md')}/"
        return f"[{shown}]({up}{away}{f'#{anchor}' if anchor else ''})"
    kept = "" if not anchor or (path.endswith(OVERVIEW) and anchor.startswith("--")) else f"#{anchor}"
    return f"{mark}[{shown}]({posixpath.relpath(place, posixpath.dirname(page) or '.')}{kept})"


def _is_own_english(place: str, page: str) -> bool:
    suffixes = PurePosixPath(page).suffixes
    return len(suffixes) == 2 and suffixes[0][1:] in LANGUAGES and place == page.replace(suffixes[0], "")


def _place(path: str, anchor: str) -> str | None:
    """Return where a file of the repository stands in the site; None where it does not."""
    if path == "README.md":
        return "index.md"
    if path == f"docs/{OVERVIEW}":
        flag = anchor.removeprefix("--")
        return f"analyses/{flag}.md" if flag in all_analyses() else "analyses/index.md"
    if path.startswith("docs/") and not path.startswith(f"docs/{GENERATOR}/"):
        return path.removeprefix("docs/")
    if re.fullmatch(r"notebooks/\w+_files/\d+\.png", path):
        return path
    if path.startswith("notebooks/") and path.endswith(".ipynb"):
        return f"{path.removesuffix('ipynb')}md"
    return None


def _address(target: str, origin: str, page: str) -> str:
    """Return the address of a picture that is written in HTML, from the folder that the page becomes."""
    if re.match(r"[a-z]+:", target):
        return target
    place = _place(os.path.normpath(posixpath.join(posixpath.dirname(origin), target)), "")
    name = PurePosixPath(page)
    url = name.parent if name.name.split(".")[0] == "index" else name.parent / name.name.split(".")[0]
    return target if place is None else posixpath.relpath(place, str(url))
