"""Which checks and barriers of the CUDA sources could go without any test noticing.

    python -m tests.kernels.mutation [--list] [--jobs N] [--sample N] [FILTER...]

run from the repository's root, takes away, one at a time, every barrier, every commit of and wait
for ``cp.async`` and every bounds check of the sources (those whose file, line and text contain one
of the FILTERs), and runs the tests of the kernels that contain it: plainly; then, for barriers,
with every access traced, for checks under the sanitizers; in the end all of ``tests/kernels``. It
tells what noticed, and ends with status 1 if nothing did. The sources themselves are left alone:
the tests read a copy.

In the processes that run the tests, and in those that tests start, this module is a plugin of
pytest's.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from hypothesis import Phase, settings

from crisscross.kernels import source
from tests.emulator import sanitizers
from tests.emulator.build import Mode

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "crisscross/kernels/cuda"
#: Variables: the folder from which tests are to read the sources, seconds that they may compute.
FOLDER, SECONDS = "MUTATED_SOURCES", "MUTATION_SECONDS"

# Arguments of pytest for tests that decide quickly: the first of a kernel are run in two modes, all
# others plainly.
_STRIPS = (
    ("tests/kernels/test_strips.py", "-k", "float32-32x32x64 and (single or several)"),
    ("tests/kernels/test_corners.py", "-k", "energies and float32"),
    ("tests/kernels/test_operations.py", "-k", "masked_keys_get_no_gradient"),
)
_MMA = tuple(
    ("tests/kernels/test_strips.py", "-k", f"{tiles} and (single or several)")
    for tiles in (
        "forward-bfloat16-4-strips",
        "forward-bfloat16-128x64x64",
        "backward-float16-2-strips",
        "backward-tf32-64x32x64 and not aligned",
        "backward-bfloat16-128x32x64 and not aligned",
        "forward-tf32-64x32x256 and not aligned",
    )
)
_COPIES = (("tests/kernels/test_layout_and_merge.py", "-k", "copies and float32-float32"),)
_MERGES = (("tests/kernels/test_layout_and_merge.py", "-k", "merges and float32-float32"),)
_CCNET = (("tests/kernels/test_ccnet.py", "-k", "float32"),)
#: A source -> these tests of its kernel; whatever else there is comes after them.
QUICK = {
    "strip_forward.cu": _STRIPS,
    "strip_backward_queries.cu": _STRIPS,
    "strip_backward_keys.cu": _STRIPS,
    "strip_forward_mma.cu": _MMA[:1],
    "strip_forward_mma_stream.cu": (_MMA[1], _MMA[5]),
    "strip_backward_mma.cu": _MMA[2:3],
    "strip_backward_queries_mma.cu": _MMA[3:5],
    "strip_backward_keys_mma.cu": _MMA[3:5],
    "copy_features.cu": _COPIES,
    "merge.cu": _MERGES,
    "ca_weight.cu": _CCNET,
    "ca_map.cu": _CCNET,
    "ca_map_transposed_rows.cu": _CCNET,
    "ca_softmax.cu": _CCNET,
    "ca_softmax_backward.cu": _CCNET,
    "to_port_layout.cu": _CCNET,
    "from_port_layout.cu": _CCNET,
}
EVERYTHING = ("tests/kernels", "--ignore=tests/kernels/test_mutation.py")
#: Seconds after which tests hang, quick ones and all; half of them, if spent computing.
QUICK_LIMIT, LIMIT = 120, 1500


# The plugin.


def pytest_configure() -> None:
    if FOLDER in os.environ:
        source._FOLDER = Path(os.environ[FOLDER])
        # A kernel that hangs does compute; waiting for a busy machine does not count.
        seconds = int(os.environ[SECONDS])
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))


def pytest_sessionstart() -> None:
    """Have no example made smaller: that one fails is all there is to know."""
    unshrunk = settings(settings.get_profile("seeded"), phases=[Phase.explicit, Phase.generate])
    settings.register_profile("unshrunk", unshrunk)
    settings.load_profile("unshrunk")


def pytest_runtest_logstart(nodeid: str) -> None:
    print(f"\nrunning: {nodeid}", flush=True)


# What there is to take away.


@dataclass(frozen=True)
class Mutant:
    """A source with one thing less.

    Attributes
    ----------
    file, line
        Where.
    start, end
        The characters that are replaced.
    text, replacement
        What was there, and what is there instead.
    """

    file: str
    line: int
    start: int
    end: int
    text: str
    replacement: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {' '.join(self.text.split())}"

    @property
    def is_barrier(self) -> bool:
        return self.replacement == ";"

    def apply(self, text: str) -> str:
        """Change the file's text; lines keep their numbers."""
        lines = "\n" * self.text.count("\n")
        return text[: self.start] + self.replacement + lines + text[self.end :]


_BARRIER = re.compile(
    r"(?<!void )\b(?:\w+::)?"
    r"(?:__sync(?:threads|warp)\w*|cp_async_(?:commit|wait)\w*|__pipeline_(?:commit|wait_prior))"
    r"(?:<[^<>;]*>)?(?=\()"
)
# What is made of `is_inside` stands for it: functions that return it, and constants.
_PREDICATE = re.compile(r"\bbool (\w+)\([^()]*\)(?: const)? \{\s*return [^;]*is_inside\(")
_CONSTANT = re.compile(r"\bconst bool (\w+) =[^;]*(?:is_inside\(|_there\b)[^;]*;")
_FLAG = re.compile(r"(?:\b\w+(?:\[[^\[\]]*\])?\.)*\b\w*(?:is|are)_there\b")
_FLAG_DECLARED = re.compile(r"\bbool\*? (?:\w+\[\w+\], )*$")
# A comparison that is but a part of a condition, and no loop's.
_COMPARISON = re.compile(r"(?<![\w.+*-] )(?<![\w.])[\w.]+(?: \+ \w+)* <=? [\w.]+(?=\s+(?:&&|\?))")


def list_mutants(sources: Mapping[str, str]) -> list[Mutant]:
    """List all mutants of sources, given by the names of their files."""
    code = {name: _blank_comments(text) for name, text in sources.items()}
    predicates = {"is_inside"}.union(*map(_PREDICATE.findall, code.values()))
    found = []
    for name, text in sorted(code.items()):
        spans = dict.fromkeys(_find_barriers(text), ";")
        spans |= dict.fromkeys(_find_checks(text, predicates), "true")
        for (start, end), replacement in sorted(spans.items()):
            line = text.count("\n", 0, start) + 1
            found.append(Mutant(name, line, start, end, sources[name][start:end], replacement))
    return found


def _blank_comments(text: str) -> str:
    return re.sub(r"//.*", lambda comment: " " * len(comment[0]), text)


def _find_barriers(text: str) -> Iterator[tuple[int, int]]:
    for match in _BARRIER.finditer(text):
        end = _find_end(text, match.end())
        if text[end] == ";":  # or else it is being defined
            yield match.start(), end + 1


def _find_checks(text: str, predicates: set[str]) -> Iterator[tuple[int, int]]:
    call = re.compile(rf"(?<!bool )(?:\b\w+\.)?\b(?:{'|'.join(sorted(predicates))})(?=\()")
    for match in call.finditer(text):
        yield match.start(), _find_end(text, match.end())
    for match in _FLAG.finditer(text):
        end = _find_end(text, match.end()) if text[match.end()] == "[" else match.end()
        is_array = end == match.end() and re.match(r"\s*[,+]", text[end:])
        is_set = re.match(r"\s*[|&]?=[^=]", text[end:])
        if not (is_array or is_set or _FLAG_DECLARED.search(text, 0, match.start())):
            yield match.start(), end
    for constant in _CONSTANT.finditer(text):
        for use in re.compile(rf"(?<!\.)\b{constant[1]}\b").finditer(text, constant.end()):
            yield use.span()
    for match in _COMPARISON.finditer(text):
        yield match.span()


def _find_end(text: str, opening: int) -> int:
    """Find the place behind the bracket that closes the one at `opening`."""
    depth = 0
    for i in range(opening, len(text)):
        depth += (text[i] in "([") - (text[i] in ")]")
        if depth == 0:
            return i + 1
    raise ValueError(f"nothing closes {text[opening : opening + 40]!r}")


def find_kernels(sources: Mapping[str, str], name: str) -> list[str]:
    """Find the sources that include a file, themselves or through others."""
    reached = {name}
    while True:
        more = {
            other
            for other, text in sources.items()
            if any(f'#include "{each}"' in text for each in reached)
        }
        if more <= reached:
            return sorted(each for each in reached if each.endswith(".cu"))
        reached |= more


# Whether a test notices.


@dataclass(frozen=True)
class Trial:
    """Some tests, by the arguments of pytest, in one mode of the emulator."""

    tests: tuple[str, ...]
    mode: Mode
    limit: int = QUICK_LIMIT


@dataclass(frozen=True)
class Outcome:
    """What came of a trial: whether all tests passed, else where it ended and what was said."""

    passed: bool
    test: str = ""
    said: str = ""


def read_sources() -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(SOURCES.glob("*.cu*"))}


def list_trials(mutant: Mutant, sources: Mapping[str, str]) -> list[Trial]:
    """List what may notice a mutant: what is quick, and what is likely to, comes first."""
    modes = (Mode.PLAIN, Mode.TRACED if mutant.is_barrier else Mode.SANITIZED)
    kernels = find_kernels(sources, mutant.file)
    quick = dict.fromkeys(QUICK[kernel] for kernel in kernels if kernel in QUICK)
    return [
        *(Trial(first, mode) for mode in modes for first, *_ in quick),
        *(Trial(tests, Mode.PLAIN) for _, *more in quick for tests in more),
        Trial(EVERYTHING, Mode.PLAIN, LIMIT),
    ]


def run_trial(trial: Trial, sources: Mapping[str, str], cache: Path | None = None) -> Outcome:
    """Run tests on sources, which they read from a folder of their own."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in sources.items():
            (Path(folder) / name).write_text(text)
        environment = {
            **os.environ,
            **(sanitizers.environment() if trial.mode is Mode.SANITIZED else {}),
            "EMULATOR_MODE": trial.mode.value,
            FOLDER: folder,
            SECONDS: str(trial.limit // 2),
            "PYTEST_PLUGINS": "tests.kernels.mutation",
        }
        if trial.tests != EVERYTHING:
            environment["KERNEL_SWEEP"] = "full"  # or else a sample may not have these tests
        if cache is not None:
            environment["EMULATOR_CACHE"] = str(cache)
        # Not captured: what a sanitizer says, it says as the process ends.
        options = ("-x", "-q", "-s", "-p", "no:cacheprovider")
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, *trial.tests],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(timeout=trial.limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said, _ = process.communicate()
            return Outcome(False, _find_last_test(said), "hangs")
    return _read_outcome(process.returncode, said)


_REASONS = (
    r"ERROR: AddressSanitizer: (\S+)",
    r"runtime error: (.*)",
    r"^E +(.*\bFAILS\b.*)$",
    r"^E +(\S.*)$",
)


def _read_outcome(status: int, said: str) -> Outcome:
    # Statuses of pytest's own: interrupted (while it collects), an internal error, wrong usage, no
    # tests.
    if status in (2, 3, 4, 5):
        raise RuntimeError(f"pytest did not run the tests:\n{said[-3000:]}")
    if "tests.emulator.build.CompileError" in said:
        raise RuntimeError(f"it does not compile:\n{said[-3000:]}")
    if status == 0:
        return Outcome(True)
    reason = "hangs" if status in (-signal.SIGXCPU, -signal.SIGKILL) else _find_reason(status, said)
    return Outcome(False, _find_last_test(said), reason)


def _find_last_test(said: str) -> str:
    tests = re.findall(r"^running: (.*)$", said, re.M)
    return tests[-1] if tests else "before any test"


def _find_reason(status: int, said: str) -> str:
    for pattern in _REASONS:
        match = re.search(pattern, said, re.M)
        if match is not None:
            return match[1][:100]
    return f"status {status}"


class Court:
    """Tries mutants, with what is compiled kept for all of them."""

    def __init__(self, sources: Mapping[str, str], cache: Path | None = None) -> None:
        self._sources = sources
        self._cache = cache
        self._passed: dict[Trial, Lock] = {}
        self._lock = Lock()

    def check(self, trial: Trial) -> None:
        """Make sure, once, that tests pass with the sources as they are."""
        with self._lock:
            first = trial not in self._passed
            lock = self._passed.setdefault(trial, Lock())
            if first:
                lock.acquire()
        if not first:
            with lock:
                return
        try:
            outcome = run_trial(trial, self._sources, self._cache)
        finally:
            lock.release()
        if not outcome.passed:
            raise RuntimeError(f"{trial} fails without a mutant: {outcome.test}: {outcome.said}")

    def find_witness(self, mutant: Mutant) -> tuple[Trial, Outcome] | None:
        """Find what notices that something is missing."""
        mutated = {**self._sources, mutant.file: mutant.apply(self._sources[mutant.file])}
        for trial in list_trials(mutant, self._sources):
            self.check(trial)
            outcome = run_trial(trial, mutated, self._cache)
            if not outcome.passed:
                return trial, outcome
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.kernels.mutation",
        description="Take away checks and barriers of the CUDA sources, and see what notices.",
    )
    parser.add_argument("filters", nargs="*", metavar="FILTER", help="a part of FILE:LINE: TEXT")
    parser.add_argument("--list", action="store_true", help="only list what would be taken away")
    parser.add_argument("--sample", type=int, help="try so many, others whenever sources change")
    parser.add_argument("--jobs", type=int, default=2, help="mutants that are tried at a time")
    options = parser.parse_args(arguments)
    sources = read_sources()
    mutants = [
        mutant
        for mutant in list_mutants(sources)
        if not options.filters or any(each in str(mutant) for each in options.filters)
    ]
    if options.sample is not None and options.sample < len(mutants):
        mutants = random.Random("".join(sources.values())).sample(mutants, options.sample)
    if not mutants or options.jobs < 1:
        parser.error("no mutant fits the filters" if options.jobs > 0 else "--jobs: at least 1")
    if options.list:
        print(*mutants, sep="\n")
        return 0
    began = time.monotonic()
    survivors = []
    with tempfile.TemporaryDirectory() as cache, ThreadPoolExecutor(options.jobs) as pool:
        court = Court(sources, Path(cache))
        running = {pool.submit(court.find_witness, mutant): mutant for mutant in mutants}
        try:
            for number, future in enumerate(as_completed(running), 1):
                mutant, witness = running[future], future.result()
                if witness is None:
                    survivors.append(mutant)
                    told = "SURVIVED"
                else:
                    trial, outcome = witness
                    told = f"{trial.mode.value}, {outcome.test}: {outcome.said}"
                print(f"[{number}/{len(mutants)}] {mutant}\n    {told}", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    minutes = (time.monotonic() - began) / 60
    print(f"{len(mutants)} mutants in {minutes:.1f} minutes, {len(survivors)} survived")
    for mutant in survivors:
        print(f"  {mutant}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
