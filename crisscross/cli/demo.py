"""`crisscross demo`: noise removed from a photograph, measured beside scikit-image, and drawn."""

from __future__ import annotations

import time
import tracemalloc
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from skimage import data
from skimage.restoration import denoise_nl_means
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from crisscross.cli.denoise import (
    add_noise,
    attention_rows,
    choose_patch,
    compute_psnr,
    denoise,
    denoise_again,
)
from crisscross.cli.errors import CommandError
from crisscross.cli.files import Photograph, read_image, replace_when_done, scale_down
from crisscross.cli.picture import Scene, draw
from crisscross.cli.progress import make_progress

__all__ = ["run"]

_STAGES = 5
#: The pixel marked by default, as shares of height and width.
_MARK = (0.42, 0.46)
#: scikit-image's non-local means: the patches of its manual, and h over sigma. The manual has
#: 0.8; 0.6 does better on most photographs. The demo takes the better one.
_REFERENCE_PATCH, _REFERENCE_REACH = 5, 6
_REFERENCE_BANDWIDTHS = (0.6, 0.8)


@dataclass(frozen=True)
class Result:
    """A denoised image, its PSNR, the seconds it took, and the most bytes held at a time."""

    name: str
    image: np.ndarray
    psnr: float
    seconds: float
    peak: int


def run(arguments: Namespace) -> None:
    """Run the demo: write the picture, print the table.

    Raises
    ------
    CommandError
        If an argument, the image or the output does not serve.
    """
    if arguments.image is not None and arguments.out.resolve() == arguments.image.resolve():
        raise CommandError(f"cannot write {arguments.out}: it is the photograph itself")
    # One BLAS thread, as scikit-image's means have. Strips make small products, which gain little
    # from a second thread, and lose a lot where it has to wait for a busy CPU.
    with replace_when_done(arguments.out) as unfinished, threadpool_limits(1, "blas"):
        photograph = scale_down(_open(arguments.image), arguments.max_side)
        patch = _find_patch(photograph, arguments)
        pixel = _find_pixel(photograph, arguments.mark)
        results = _compute(photograph.image, patch, pixel, arguments, unfinished)
    Console().print(_make_table(photograph.image, results, arguments))
    for note in _make_notes(photograph, results[1:3], patch, arguments):
        print(note)


def _open(path: Path | None) -> Image.Image:
    if path is not None:
        return read_image(path)
    return Image.fromarray(data.camera())  # type: ignore[no-untyped-call]


def _find_patch(photograph: Photograph, arguments: Namespace) -> int:
    height, width, channels = photograph.image.shape
    patch: int = arguments.patch or choose_patch(arguments.sigma, channels)
    least = max(patch, _REFERENCE_PATCH)
    if min(height, width) < least:
        scaled = (height, width) != (photograph.full_height, photograph.full_width)
        hint = "; it was scaled down, and a larger --max-side keeps more" if scaled else ""
        raise CommandError(
            f"the image has {width} x {height} pixels, and patches need {least} x {least}{hint}"
        )
    return patch


def _find_pixel(photograph: Photograph, mark: list[int] | None) -> tuple[int, int]:
    """Return the marked pixel of the scaled image; `mark` counts in the pixels of the file."""
    height, width, _ = photograph.image.shape
    if mark is None:
        return int(_MARK[0] * height), int(_MARK[1] * width)
    y, x = mark
    if y >= photograph.full_height or x >= photograph.full_width:
        raise CommandError(
            f"argument --mark: pixel {y} {x} is outside the image, which has "
            f"{photograph.full_height} rows and {photograph.full_width} columns"
        )
    return y * height // photograph.full_height, x * width // photograph.full_width


def _compute(
    clean: np.ndarray,
    patch: int,
    pixel: tuple[int, int],
    arguments: Namespace,
    unfinished: Path,
) -> list[Result]:
    """Denoise and draw into `unfinished`; return noisy, R = 1, R = 2 and the reference."""
    sigma = arguments.sigma
    image = add_noise(clean, sigma, arguments.seed)
    noisy = Result("noisy", image, compute_psnr(clean, image), 0, 0)
    with _progress() as stage:
        with stage("criss-cross attention, R = 1"):
            name = "criss-cross attention, R = 1"
            once = _measure(name, clean, lambda: denoise(noisy.image, sigma, patch))
        with stage("criss-cross attention, R = 2"):
            name = "criss-cross attention, R = 2"
            again = _measure(name, clean, lambda: _denoise_twice(noisy.image, sigma, patch))
        with stage("scikit-image NL-means"):
            reference = max(
                (_measure_reference(clean, noisy.image, sigma, h) for h in _REFERENCE_BANDWIDTHS),
                key=lambda result: result.psnr,
            )
        with stage("attention of the marked pixel"):
            row, composed = attention_rows(noisy.image, sigma, patch, pixel)
        with stage("picture"):
            scene = Scene(
                clean=clean,
                noisy=(noisy.image, noisy.psnr),
                once=(once.image, once.psnr),
                again=(again.image, again.psnr),
                row=row,
                composed=composed,
                pixel=pixel,
                sigma=sigma,
            )
            draw(scene, unfinished)
    return [noisy, once, again, reference]


def _denoise_twice(noisy: np.ndarray, sigma: float, patch: int) -> np.ndarray:
    return denoise_again(noisy, denoise(noisy, sigma, patch), sigma)


def _measure_reference(
    clean: np.ndarray, noisy: np.ndarray, sigma: float, bandwidth: float
) -> Result:
    def denoise_reference() -> np.ndarray:
        image: np.ndarray = denoise_nl_means(
            noisy,
            patch_size=_REFERENCE_PATCH,
            patch_distance=_REFERENCE_REACH,
            h=bandwidth * sigma,
            sigma=sigma,
            fast_mode=True,
            channel_axis=-1,
        )
        # A single channel comes back without its axis.
        return image.reshape(noisy.shape)

    name = f"scikit-image NL-means, h = {bandwidth:g} sigma"
    return _measure(name, clean, denoise_reference)


def _measure(name: str, clean: np.ndarray, call: Callable[[], np.ndarray]) -> Result:
    """Run `call` for its memory, and once more, warm and without tracing, for its time."""
    tracemalloc.start()
    try:
        call()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    start = time.perf_counter()
    image = call()
    seconds = time.perf_counter() - start
    return Result(name, image, compute_psnr(clean, image), seconds, peak)


@contextmanager
def _progress() -> Iterator[Callable[[str], AbstractContextManager[None]]]:
    """Show a bar on a terminal's stderr, and nothing elsewhere; yields what opens a stage."""
    with make_progress() as progress:
        task = progress.add_task("", total=_STAGES)

        @contextmanager
        def stage(name: str) -> Iterator[None]:
            progress.update(task, description=name)
            yield
            progress.advance(task)

        yield stage
        progress.update(task, description="done")


def _make_table(clean: np.ndarray, results: list[Result], arguments: Namespace) -> Table:
    height, width, channels = clean.shape
    kind = "colour" if channels == 3 else "grey"
    title = f"{width} x {height} {kind}, sigma = {arguments.sigma:g}, seed {arguments.seed}"
    table = Table("", title=title)
    for heading in ("PSNR", "time", "peak memory"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        cost = (f"{result.seconds:.2f} s", _name_bytes(result.peak)) if result.peak else ()
        table.add_row(result.name, f"{result.psnr:.2f} dB", *cost)
    return table


def _make_notes(
    photograph: Photograph, passes: list[Result], patch: int, arguments: Namespace
) -> Iterator[str]:
    height, width, _ = photograph.image.shape
    full_height, full_width = photograph.full_height, photograph.full_width
    if (full_height, full_width) != (height, width):
        yield (
            f"Scaled down from {full_width} x {full_height} to {width} x {height} pixels: "
            f"--max-side {arguments.max_side}."
        )
    yield (
        f"R = 1 compares noisy patches of {patch} x {patch}; R = 2 takes queries and keys from its "
        "result."
    )
    pixels = height * width
    yield (
        f"A dense attention map, {pixels} x {pixels} in float32, would need "
        f"{_name_bytes(4 * pixels**2)}; needed: {_name_bytes(max(x.peak for x in passes))}."
    )
    yield f"Wrote {arguments.out}"


def _name_bytes(count: int) -> str:
    size, unit = count / 2**20, "MiB"
    if size >= 1024:
        size, unit = size / 1024, "GiB"
    return f"{size:.1f} {unit}"
