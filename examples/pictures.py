"""Draw docs/attention.png and docs/entropy.png: what a position of a photograph sees.

    python examples/pictures.py [FOLDER]

Needs the extra ``demo``. Queries and keys are made such that positions attend to what looks like
them: energies are minus the squared distance of 5 x 5 patches.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
from skimage import data, transform

from crisscross import plot

SIZE, SHARPNESS = 96, 6.0
#: On the grass, beside the coat.
AT = (70, 30)


def make_features(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Make q and k, (1, 26, H, W), with <q_p, k_x> = -SHARPNESS |patch_p - patch_x|^2 + c_p."""
    around = np.pad(image, 2, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(around, (5, 5))
    patches = windows.reshape(*image.shape, 25).transpose(2, 0, 1)
    lengths = np.square(patches).sum(0, keepdims=True)
    q = np.concatenate([2 * SHARPNESS * patches, np.full_like(lengths, -SHARPNESS)])
    k = np.concatenate([patches, lengths])
    return q[None], k[None]


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
    mpl.use("agg")
    photograph = data.camera()
    q, k = make_features(transform.resize(photograph, (SIZE, SIZE), anti_aliasing=True))
    plot.show_recurrence([(q, k), (q, k)], photograph, at=AT, path=folder / "attention.png")
    plot.show_entropy(q, k, photograph, path=folder / "entropy.png")


if __name__ == "__main__":
    main()
