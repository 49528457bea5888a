"""Pages that stand in for places which cannot be opened here: `from sharing.looks import ...`.

VS Code draws outputs in a web view with a style sheet of its own; GitHub draws what is left of HTML
in its own type. Both are written from what is known of them, not copied.
"""

from __future__ import annotations

from html import escape
from typing import Any

from sharing.places import github, kind

_VSCODE = """
body{--vscode-foreground:%(text)s;--vscode-descriptionForeground:%(soft)s;--vscode-panel-border:#80808059;
--vscode-editor-background:%(ground)s;--vscode-editor-font-family:monospace;
background:%(ground)s;color:%(text)s;font:13px sans-serif;margin:0;padding:12px 24px}
table,thead,tr,th,td,tbody{border:none !important;border-color:transparent;border-spacing:0;border-collapse:collapse}
table,th,tr{vertical-align:middle;text-align:left !important}
thead{font-weight:bold;background-color:#82828229}
th,td{padding:4px 8px}
tr:nth-child(even){background-color:#82828214}
tbody th{font-weight:normal}
"""
_GITHUB = """
body{background:#ffffff;color:#1f2328;font:14px/1.5 sans-serif;margin:0;padding:16px 32px}
table{border-collapse:collapse;display:block;overflow:auto;margin:0 0 14px}
th,td{border:1px solid #d1d9e0;padding:5px 12px}
tr:nth-child(2n){background:#f6f8fa}
code,pre{font:12px monospace;background:#f0f1f2;border-radius:4px;padding:.15em .3em}
pre{padding:12px;overflow:auto}pre code{padding:0}
h1,h2{border-bottom:1px solid #d1d9e0;padding-bottom:.3em}
"""
_SOURCE = "background:#80808014;border-radius:4px;font:13px monospace;padding:8px 12px;margin:14px 0 10px"
DARK = {"text": "#cccccc", "soft": "#9d9d9d", "ground": "#1f1f1f"}
LIGHT = {"text": "#3b3b3b", "soft": "#616161", "ground": "#ffffff"}


def vscode_page(notebook: Any, is_dark: bool) -> str:
    """Return the outputs of a notebook under the rules of VS Code's output view."""
    theme = "vscode-dark" if is_dark else "vscode-light"
    return _page(_VSCODE % (DARK if is_dark else LIGHT), _cells(notebook, lambda markup: markup), theme)


def github_page(notebook: Any) -> str:
    """Return what is left of a notebook on GitHub, in a type like GitHub's."""
    return _page(_GITHUB, _cells(notebook, github))


def markdown_page(body: str) -> str:
    """Return Markdown that was turned into HTML, as GitHub shows a file."""
    return _page(_GITHUB, github(body))


def _cells(notebook: Any, keep: Any) -> str:
    written = []
    for cell in notebook["cells"]:
        written.append(f'<div style="{_SOURCE}">{escape("".join(cell["source"]))}</div>')
        for output in cell.get("outputs", ()):
            picture = kind(output, "image/png").replace("\n", "")
            if picture:
                size = output["metadata"]["image/png"]
                written.append(f'<img src="data:image/png;base64,{picture}" width="{size["width"]}">')
            else:
                written.append(f"<div>{keep(kind(output, 'text/html'))}</div>")
    return "\n".join(written)


def _page(style: str, body: str, theme: str = "") -> str:
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><style>{style}</style></head>'
        f'<body class="{theme}">{body}</body></html>'
    )
