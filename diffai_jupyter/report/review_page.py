"""The summary for a reviewer as a page of its own: facts first, then the verdict and what it rests on."""

from __future__ import annotations

from diffai_jupyter.contract.blocks import Document, Fact, Facts, Heading, Lines, Section, Sentence
from diffai_jupyter.contract.report import Report
from diffai_jupyter.render.translation import translated
from diffai_jupyter.report.brief import REVIEW
from diffai_jupyter.report.layout import SUMMARY, title_of
from diffai_jupyter.report.summary import summary


def review_page(report: Report, lang: str = "en") -> Document:
    """Lay out the summary for a reviewer.

    Parameters
    ----------
    report : Report
        With the result of ``--review-friendly``.
    lang : str
        Language code.
    """
    (analysis,) = (analysis for analysis in report.analyses if analysis.flag == REVIEW)
    result = report.results[REVIEW]
    verdict = Sentence(result.meaning.template, result.meaning.said, is_strong=True)
    facts = Facts(tuple(Fact(field.label, result.values[field.key], field.form) for field in analysis.fields))
    blocks = (*summary(report), Heading("Review", 2), verdict, Lines((analysis.line(result),)), facts, *result.blocks)
    return translated(Document(title_of(report), (Section(REVIEW, SUMMARY, blocks),)), lang)
