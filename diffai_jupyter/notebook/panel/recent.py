"""The checkpoints that were opened with panels of this session; kept in memory only."""

from __future__ import annotations

MOST = 12


class Recent:
    """What was opened, the newest first.

    Examples
    --------
    >>> recent = Recent()
    >>> for source in ("a.pt", "b.pt", "a.pt"):
    ...     recent.add(source)
    >>> recent.sources
    ('a.pt', 'b.pt')
    """

    def __init__(self) -> None:
        self.sources: tuple[str, ...] = ()

    def add(self, source: str) -> None:
        """Put a source first."""
        self.sources = (source, *(other for other in self.sources if other != source))[:MOST]


RECENT = Recent()
