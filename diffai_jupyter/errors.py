"""The errors a user can meet.

::

    DiffaiError
    ├── SourceError            a checkpoint cannot be opened or read
    │   └── FormatError        its bytes break the rules of their format
    ├── ArgumentError          a flag, a name or a value that was typed is wrong
    │   └── SettingError       a setting is unknown or out of its range
    ├── ExecutorError          the workers of --executor cannot be reached, or do not finish their work
    ├── MissingPackageError    an optional package is needed for what was asked
    └── GateError              a condition of --fail-on holds, or cannot be known

Every message is one sentence or two: what was given, what was expected, what to do.
"""

from __future__ import annotations


class DiffaiError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code = 2


class SourceError(DiffaiError):
    """A checkpoint cannot be opened or read."""


class FormatError(SourceError):
    """The bytes of a file break the rules of its format.

    Parameters
    ----------
    path : str
        The file.
    reason : str
        What is wrong, in one clause.
    offset : int, optional
        Byte offset of the damage, where one is known.
    """

    def __init__(self, path: str, reason: str, offset: int | None = None) -> None:
        self.path, self.reason, self.offset = path, reason, offset
        where = path if offset is None else f"{path} (byte {offset})"
        super().__init__(f"{where}: {reason}.")

    def __reduce__(self) -> tuple[type[FormatError], tuple[str, str, int | None]]:
        return FormatError, (self.path, self.reason, self.offset)


class ArgumentError(DiffaiError):
    """Something typed by the user is wrong."""


class SettingError(ArgumentError):
    """A setting is unknown or out of its range."""


class ExecutorError(DiffaiError):
    """The workers of ``--executor`` cannot be reached, or do not finish their work."""


class MissingPackageError(DiffaiError):
    """An optional package is missing.

    Parameters
    ----------
    feature : str
        What was asked for.
    package : str
        The package that provides it.
    extra : str
        The extra of this distribution that installs the package.
    """

    def __init__(self, feature: str, package: str, extra: str) -> None:
        self.feature, self.package, self.extra = feature, package, extra
        super().__init__(f"{feature} needs {package}: pip install 'diffai-jupyter[{extra}]'")


class GateError(DiffaiError):
    """A condition of ``--fail-on`` holds, or cannot be known."""

    exit_code = 3
