"""What a file would have done to a program that unpickles it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import PurePath

from diffai_jupyter.checkpoint.model import Note
from diffai_jupyter.readers.formats.pytorch.inert import Global
from diffai_jupyter.readers.formats.pytorch.tensors import is_part
from diffai_jupyter.readers.formats.pytorch.workings import Session
from diffai_jupyter.wording import Name, listed, some

_NAME_LIMIT = 10
# Modules whose functions run programs, read files or find such functions; their names are said first.
_DANGEROUS = frozenset({
    "os", "posix", "nt", "subprocess", "sys", "builtins", "importlib", "runpy", "socket", "shutil", "ctypes", "pty",
    "pickle", "_pickle", "cPickle", "code", "codeop", "commands", "webbrowser", "operator", "_operator", "types",
    "multiprocessing", "asyncio", "signal", "platform", "copyreg", "timeit", "pdb", "bdb", "pip", "marshal", "imp",
    "tempfile", "urllib", "requests", "http", "ftplib", "smtplib", "functools", "_posixsubprocess", "cProfile",
    "profile", "trace", "doctest", "idlelib", "lib2to3", "pydoc", "site", "sysconfig", "venv", "zipimport",
})
# What trainers save the arguments of a run as: instances of their own classes.
_TRAINERS = frozenset({
    "transformers", "accelerate", "trl", "peft", "sentence_transformers", "setfit", "optimum", "lightning",
    "lightning_fabric", "pytorch_lightning",
})
# What instances are made of without harm; names of one module are listed behind it.
_HARMLESS = {
    "builtins": {"object", "slice", "range", "int", "float", "bool", "str"},
    "argparse": {"Namespace"},
    "types": {"SimpleNamespace"},
    "pathlib": {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path", "PurePath"},
    "pathlib._local": {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path", "PurePath"},
    "datetime": {"datetime", "date", "time", "timedelta", "timezone"},
    "decimal": {"Decimal"},
    "fractions": {"Fraction"},
    "uuid": {"UUID"},
    "collections": {"deque", "OrderedDict", "Counter", "defaultdict"},
    "numpy": {"ndarray", "dtype"},
    "numpy.random._pickle": {"__randomstate_ctor", "__generator_ctor", "__bit_generator_ctor"},
    "numpy.random._mt19937": {"MT19937"},
    "numpy.random._pcg64": {"PCG64"},
    "torch.nn.parameter": {"Buffer", "UninitializedParameter", "UninitializedBuffer"},
    "torch": {"device", "Generator", "Tensor"},
}


def risk_notes(path: str, session: Session, builders: Collection[str]) -> list[Note]:
    """Return what a reader must be told about the names in a file: what would be called, what imported.

    Parameters
    ----------
    path : str
        The file.
    session : Session
        What its pickles would have done.
    builders : collection of str
        Names that tensors are made with.
    """
    called, file = risky_calls(session), Name(PurePath(path).name)
    notes = []
    if called:
        template = "{file} would call {names} if it were unpickled. Nothing was called; load it only if you trust it."
        notes.append(Note(template, {"file": file, "names": some(called, _NAME_LIMIT)}, is_warning=True))
    others = {
        name: found for name, found in session.named.items()
        if name not in called and name not in builders and not is_part(found) and not _is_script(found)
    }
    if others:
        template = "{file} would import {names} if it were unpickled. Nothing was imported."
        said = {"file": file, "names": some(_ordered(others.values()), _NAME_LIMIT)}
        is_warning = any(_is_dangerous(found) and not _is_harmless(found) for found in others.values())
        notes.append(Note(template, said, is_warning=is_warning))
    return notes


def sidecar_risks(path: str, session: Session) -> list[Note]:
    """Return what a reader must be told of the calls in a side-car; classes that trainers save are no news."""
    called = [
        name for name in risky_calls(session)
        if not _is_expected({**session.called, **session.made}[name])
    ]  # fmt: skip
    if not called:
        return []
    template = "{file} would call {names} if it were unpickled. Nothing was called; load it only if you trust it."
    said = {"file": Name(PurePath(path).name), "names": some(called, _NAME_LIMIT)}
    return [Note(template, said, is_warning=True)]


def _is_expected(found: Global) -> bool:
    is_class = found.name.isidentifier() and found.name[:1].isupper()
    return is_class and found.module.split(".")[0] in _TRAINERS


def risky_calls(session: Session) -> list[str]:
    """Return the names that would be called and are not known to be harmless, the most telling first."""
    bare = {name: found for name, found in session.made.items() if name not in session.modules}
    called = {**session.called, **bare}
    return _ordered(found for found in called.values() if not _is_harmless(found) and not _is_script(found))


def with_risks(reason: str, session: Session) -> str:
    """Add to the reason why a file is refused what it would have called."""
    called = risky_calls(session)
    if not called:
        return reason
    names = listed(called, _NAME_LIMIT)
    return f"{reason}; unpickled, it would have called {names}, and nothing was called"


def _ordered(found: Iterable[Global]) -> list[str]:
    return [str(name) for name in sorted(found, key=lambda name: not _is_dangerous(name))]


def _is_dangerous(found: Global) -> bool:
    return found.module.split(".")[0] in _DANGEROUS


def _is_harmless(found: Global) -> bool:
    if found.name in _HARMLESS.get(found.module, ()):
        return True
    # A dotted name would lead from a harmless module to any that it imports.
    is_class = found.name.isidentifier() and found.name[:1].isupper()
    return is_class and found.module.startswith("torch.nn.modules.")


def _is_script(found: Global) -> bool:
    """Say whether a name is a class of TorchScript, which the archive itself holds and Python never imports."""
    return found.module == "__torch__" or found.module.startswith("__torch__.")
