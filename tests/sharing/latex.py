"""What stands in the LaTeX source that nbconvert writes with pandoc: `from sharing.latex import ...`."""

from __future__ import annotations

import re
from collections import Counter

from sharing.places import Row, squeezed

_TABLE = re.compile(
    r"\{\\def\\LTcaptype.*?\n|\\begin\{longtable\}.*?\\endlastfoot\n(.*?)\\end\{longtable\}\n\}?", re.DOTALL
)
_MARKS = {
    "textbackslash": "\\", "textasciitilde": "~", "textless": "<", "textgreater": ">", "textbar": "|", "ldots": "…",
}  # fmt: skip
_QUOTES = {"``": '"', "''": '"', "`": "'"}


def read_latex(source: str) -> tuple[Counter[str], Counter[Row]]:
    """Return the paragraphs and the rows of tables in the body of a LaTeX source."""
    body = source.split("\\maketitle", 1)[1]
    rows = Counter(
        tuple(squeezed(_plain(cell)) for cell in re.split(r"(?<!\\)&", row))
        for rows in _TABLE.findall(body)
        for row in re.split(r"\\\\(?:\n|$)", rows)
        if row.strip()
    )
    paragraphs = re.split(r"\n\s*\n|\\(?:begin|end)\{\w+\}.*\n", _TABLE.sub("\n\n", body))
    return Counter(squeezed(_plain(part)) for part in paragraphs if part.strip()), rows


def _plain(source: str) -> str:
    # TeX sets two hyphens as a dash; pandoc keeps those apart that are meant as two.
    text = source.replace("--", "–").replace("~", " ").replace("\\ ", " ")
    text = re.sub(r"\\label\{[^}]*\}|\\noalign\{\}|\\/", "", text)
    text = re.sub(r"\\(text(?:tt|bf)|NormalTok|(?:sub)*(?:section|paragraph))(?=\{)", "", text)
    text = re.sub(r"\\([{}])", lambda found: "\ue000\ue001"["{}".index(found[1])], text)
    text = re.sub(r"\\([a-z]+)(?:\{\}| |(?=\W))", lambda found: _MARKS.get(found[1], found[0]), text)
    text = re.sub(r"(?<!\\)[{}]", "", text)
    for mark, quote in _QUOTES.items():
        text = text.replace(mark, quote)
    return re.sub(r"\\([_%&$#^])", r"\1", text).replace("\ue000", "{").replace("\ue001", "}")
