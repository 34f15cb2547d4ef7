"""Reading photographs of any kind, and writing a file whole or not at all."""

from __future__ import annotations

import os
import secrets
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from crisscross.cli.errors import CommandError

if sys.platform != "win32":
    import fcntl

__all__ = ["Photograph", "read_image", "replace_when_done", "scale_down"]


@dataclass(frozen=True)
class Photograph:
    """An image as float32 (H, W, C), C being 1 or 3, from 0 to 1, and its size in the file."""

    image: np.ndarray
    full_height: int
    full_width: int


def read_image(path: Path) -> Image.Image:
    """Read an image, upright and on white where it is transparent.

    Returns
    -------
    image
        In mode L or RGB (0 to 255), or F (0 to 1) if it has more than 8 bits.

    Raises
    ------
    CommandError
        If it cannot be read.
    """
    # Not the methods of Path, which raise for some names that cannot be.
    if not os.path.isfile(path):
        problem = "not a file" if os.path.exists(path) else "no such file"
        raise CommandError(f"cannot read {path}: {problem}")
    try:
        with warnings.catch_warnings():
            # Pillow warns of much that does no harm here; a bomb, though, is not to be unpacked.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                return _normalise(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError:
        raise CommandError(f"cannot read {path}: not an image that Pillow knows") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders raise anything for a damaged file
        raise CommandError(f"cannot read {path}: {error or type(error).__name__}") from error


def _normalise(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        array = np.asarray(image, np.float32)
        if image.mode.startswith("I;16"):
            return Image.fromarray(array / 65535)
        # The range of these modes is anyone's: from the least to the largest value that occurs.
        low, high = float(array.min()), float(array.max())
        if not np.isfinite(high - low):
            raise ValueError("its values are not all finite")
        return Image.fromarray((array - low) / ((high - low) or 1))
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("L" if grey else "RGB")


def scale_down(image: Image.Image, max_side: int) -> Photograph:
    """Turn what `read_image` returns into an array, no side of it longer than `max_side`.

    Examples
    --------
    >>> photograph = scale_down(Image.new("RGB", (600, 300)), max_side=100)
    >>> photograph.image.shape, photograph.full_height
    ((50, 100, 3), 300)
    """
    width, height = image.size
    factor = max_side / max(width, height)
    if factor < 1:
        smaller = (max(1, round(width * factor)), max(1, round(height * factor)))
        image = image.resize(smaller, Image.Resampling.LANCZOS)
    array = np.asarray(image, np.float32) / (1 if image.mode == "F" else 255)
    return Photograph(np.clip(array, 0, 1).reshape(*array.shape[:2], -1), height, width)


@contextmanager
def replace_when_done(
    path: Path, suffix: str = ".png", *, is_shared: bool = False
) -> Iterator[Path]:
    """Yield an empty file beside `path`; it takes the place of `path` if the block succeeds.

    If not, for an error or for Ctrl-C, it is removed, and `path` is as it was. That it can be
    written is found out here, before the block's work. Of a file that `is_shared`, what the block
    reads holds until `path` is replaced: other processes wait for their turn.

    Raises
    ------
    CommandError
        If `path` cannot be written.
    """
    if path.suffix.lower() != suffix:
        raise CommandError(f"cannot write {path}: expected a name that ends in {suffix}")
    # Through a link, or the link itself would be replaced.
    target = Path(os.path.realpath(path))
    if not os.path.isdir(target.parent):
        raise CommandError(f"cannot write {path}: there is no folder {target.parent}")
    if os.path.exists(target) and not os.path.isfile(target):
        raise CommandError(f"cannot write {path}: it exists and is not a file")
    # Not of tempfile, whose files their owner alone may read.
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with _hold_lock(target) if is_shared else nullcontext():
            temporary.open("xb").close()
            yield temporary
            temporary.replace(target)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # it has become `path`, or could not be made
            temporary.unlink()


@contextmanager
def _hold_lock(target: Path) -> Iterator[None]:
    """Wait for a file's lock, which is a file beside it, for the file itself is replaced.

    Windows has none of this kind: of two that write there at once, one is lost.
    """
    if sys.platform == "win32":
        yield
        return
    with target.with_name(f"{target.name}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
