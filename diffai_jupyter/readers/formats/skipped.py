"""What a reader leaves out of a comparison, and why: never in silence."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass, field

from diffai_jupyter.checkpoint.model import Note
from diffai_jupyter.errors import FormatError
from diffai_jupyter.wording import listed, some

_REASON_LIMIT = 20
_OTHER = "other reasons"


@dataclass
class Skipped:
    """Collects names by reason."""

    _names: dict[str, list[str]] = field(default_factory=dict)
    _quiet: set[str] = field(default_factory=set)

    def add(self, name: str, reason: object, is_warning: bool = True) -> None:
        """Leave out something for a reason, a clause whose text from files went through `show_name`.

        Parameters
        ----------
        name : str
            Its name.
        reason : object
            The clause.
        is_warning : bool
            False for what nobody expects to be compared, such as text.
        """
        key = str(reason)
        if key not in self._names and len(self._names) >= _REASON_LIMIT:
            key = _OTHER
        if not is_warning:
            self._quiet.add(key)
        self._names.setdefault(key, []).append(name)

    def notes(self) -> tuple[Note, ...]:
        """Return one note for each reason."""
        return tuple(
            Note(
                "Not compared, because {reason}: {names}.",
                {"reason": reason, "names": some(names)},
                is_warning=reason not in self._quiet,
            )
            for reason, names in self._names.items()
        )

    def refuse_all(self, path: str, kept: Sized) -> None:
        """Refuse a file where nothing was kept because all that it holds was left out.

        Raises
        ------
        FormatError
            Naming the reasons.
        """
        if not self._names or kept:
            return
        clauses = (
            f"{listed(names)}: {reason}"
            for reason, names in self._names.items()
        )
        raise FormatError(path, f"nothing in it can be compared; {'; '.join(clauses)}")
