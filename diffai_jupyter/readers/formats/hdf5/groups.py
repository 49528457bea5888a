"""The groups of an HDF5 file, walked by hard links alone, and closed before anything is handed over.

An HDF5 file may point into other files by external links, external storage and virtual datasets, and run
in circles. So this walk opens one link name at a time, after its type was looked at: a path of several
names would follow soft and external links on the way.

References
----------
"HDF5 File Format Specification" 3.0, sections IV.A.2.g (links) and IV.A.2.i (layouts); CVE-2026-1669.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from diffai_jupyter.checkpoint.storage import Storage
from diffai_jupyter.errors import FormatError, MissingPackageError
from diffai_jupyter.readers.formats.skipped import Skipped
from diffai_jupyter.wording import clause

Path = tuple[bytes, ...]

_DEPTH_LIMIT = 64
_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError)


@contextmanager
def opened(file: Storage) -> Iterator[Any]:
    """Open an HDF5 file, and close it whatever happens: one left open at exit crashes the interpreter."""
    try:
        import h5py
    except ImportError:
        feature = "Reading an HDF5 file"
        raise MissingPackageError(feature, "h5py", "hdf5") from None
    with file.stream() as stream:
        root: Any = None
        try:
            root = h5py.File(stream, "r")
            yield root.id
        except _ERRORS as error:
            reason = f"damaged or truncated, as HDF5 says: {clause(error)}"
            raise FormatError(file.path, reason) from None
        finally:
            if root is not None:
                root.close()


def shown_path(path: Path) -> str:
    """Return the name of an object: its path without the leading slash."""
    return "/".join(part.decode("utf-8", "backslashreplace") for part in path)


@dataclass
class Walk:
    """Goes through the groups of one open file, each once.

    Parameters
    ----------
    skipped : Skipped
        Where everything goes that is not followed.
    """

    skipped: Skipped
    _seen: set[int] = field(default_factory=set)

    def datasets(self, root: Any) -> Iterator[tuple[Path, Any]]:
        """Yield the datasets below a file or group, with their paths."""
        import h5py

        waiting: list[tuple[Path, Any]] = [((), h5py.h5g.open(root, b"/"))]
        self.is_new(waiting[0][1])
        while waiting:
            above, group = waiting.pop()
            for path, found in self.children(group, above):
                if isinstance(found, h5py.h5d.DatasetID):
                    yield path, found
                elif len(path) >= _DEPTH_LIMIT:
                    self.skipped.add(shown_path(path), f"they lie more than {_DEPTH_LIMIT} groups deep")
                elif not self.is_new(found):
                    self.skipped.add(shown_path(path), "they are groups that the file holds elsewhere too")
                else:
                    waiting.append((path, found))

    def children(self, group: Any, above: Path = ()) -> Iterator[tuple[Path, Any]]:
        """Yield the groups and datasets that hard links of a group lead to."""
        import h5py

        names: list[bytes] = []
        group.links.iterate(names.append)
        kinds = {h5py.h5l.TYPE_SOFT: "soft links", h5py.h5l.TYPE_EXTERNAL: "links to other files"}
        for name in names:
            path = (*above, name)
            if b"/" in name or name in (b"", b".", b".."):
                self.skipped.add(shown_path(path), "their names are paths")
                continue
            kind = group.links.get_info(name).type
            if kind != h5py.h5l.TYPE_HARD:
                reason = f"they are {kinds.get(kind, 'links of an unknown kind')}, which are not followed"
                self.skipped.add(shown_path(path), reason)
                continue
            found = h5py.h5o.open(group, name)
            if isinstance(found, (h5py.h5d.DatasetID, h5py.h5g.GroupID)):
                yield path, found

    def is_new(self, group: Any) -> bool:
        """Say whether a group was not met before, and remember it."""
        address = address_of(group)
        is_new = address not in self._seen
        self._seen.add(address)
        return is_new


def address_of(found: Any) -> int:
    """Return where the header of an object is, which is the same however it was reached."""
    import h5py

    return int(h5py.h5o.get_info(found).addr)


def descend(root: Any, path: Path) -> Any:
    """Open an object again, by hard links alone."""
    import h5py

    found = h5py.h5g.open(root, b"/")
    for name in path:
        if b"/" in name or found.links.get_info(name).type != h5py.h5l.TYPE_HARD:
            msg = "a link changed"
            raise ValueError(msg)
        found = h5py.h5o.open(found, name)
    return found
