"""The workers of a run, one for each peer file."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Any

from crisscross.bench.process import Worker, WorkerError
from crisscross.errors import CrissCrossError

__all__ = ["BenchError", "Team"]

_OURS = "ours.py"


class BenchError(CrissCrossError):
    """There is nothing to measure; the message is one line."""


class Team:
    """The workers, one for each peer file; as a context manager it ends them.

    Parameters
    ----------
    folder : Path
        Where the peer files are.
    threads : int
        Of every worker.

    Attributes
    ----------
    home : Path
        Our own file; its first form is what the others are compared with.
    workers : dict
        By file.
    forms : dict
        The chosen forms by file: for each name, function and passes.
    packages, missing : dict of str
        Versions of the packages in use; why a file cannot be measured.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        self._folder, self._threads = folder, threads
        self.workers: dict[Path, Worker] = {}
        self.forms: dict[Path, dict[str, dict[str, Any]]] = {}
        self.packages: dict[str, str] = {}
        self.missing: dict[str, str] = {}
        self.home = folder / _OURS
        self._killed, self._starting = False, Lock()

    def __enter__(self) -> Team:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.kill()
        for worker in self.workers.values():
            worker.close()

    def kill(self) -> None:
        """End all workers now, for good."""
        with self._starting:
            self._killed = True
            for worker in self.workers.values():
                worker.kill()

    def gather(self, only: tuple[str, ...], device: str) -> None:
        """Start the worker of every file, and keep those with forms that were asked for.

        Parameters
        ----------
        only : tuple of str
            Parts of names of forms or files; all if empty.
        device : str
            Forms for another one are left out.

        Raises
        ------
        BenchError
            If our own file is missing or fails to load, or a part of `only` fits no name.
        """
        if not self.home.is_file():
            raise BenchError(
                f"there is no {_OURS} in {self._folder}: run from a clone of the repository, "
                "or give its folder benchmarks with --peers"
            )
        names: list[str] = []
        # All start at once: loading a library takes seconds.
        for path in sorted(self._folder.glob("*.py")):
            self.workers[path] = Worker(path, self._threads)
        for path in list(self.workers):
            forms = {
                name: form for name, form in self._meet(path).items() if device in form["devices"]
            }
            if forms or path.name in self.missing:
                names += [path.stem, *forms]
            kept = {
                name: form
                for number, (name, form) in enumerate(forms.items())
                if _is_asked_for(only, path, name) or (path == self.home and number == 0)
            }
            if kept:
                self.forms[path] = kept
            else:
                self.workers.pop(path).close()
        for part in only:
            if not any(part.lower() in name.lower() for name in names):
                known = ", ".join(repr(name) for name in names)
                raise BenchError(f"no form or file has {part!r} in its name; there are {known}")
        if self.home not in self.forms:
            missing = self.missing.get(_OURS, f"it has no form for {device}")
            raise BenchError(f"cannot run {self.home}: {missing}")

    def _meet(self, path: Path) -> dict[str, dict[str, Any]]:
        try:
            introduction = self.workers[path].receive()
        except WorkerError as error:
            self.missing[path.name] = str(error)
            return {}
        self.packages |= introduction["packages"]
        forms: dict[str, dict[str, Any]] = introduction["forms"]
        return forms

    @property
    def first_form(self) -> str:
        return next(iter(self.forms[self.home]))

    def restart(self, path: Path) -> None:
        """Start a worker again that has ended.

        Raises
        ------
        WorkerError
            If that does not help, or all were killed meanwhile.
        """
        with self._starting:
            if self._killed:
                raise WorkerError("the run was interrupted")
            self.workers[path].kill()
            worker = self.workers[path] = Worker(path, self._threads)
        try:
            worker.receive()
        except WorkerError:
            worker.kill()
            raise


def _is_asked_for(only: tuple[str, ...], path: Path, form: str) -> bool:
    names = (path.stem.lower(), form.lower())
    return not only or any(part.lower() in name for part in only for name in names)
