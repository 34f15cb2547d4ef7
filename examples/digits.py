"""Train on digits whose label depends on a digit far away: what context from R = 1 and R = 2 adds.

    python examples/digits.py [--steps N] [--seed N] [--out FOLDER] [--quick]

Needs the extras ``torch`` and ``demo``, and a few minutes of a CPU; prints the table of
docs/training.md, and draws digits.png.

A canvas has 48 x 48 pixels, and 4 x 4 places 12 pixels apart, all of them moved down and right by 0
or 4 pixels. Eight places hold one of scikit-learn's digits, 8 x 8 pixels, drawn independently. One
of the eight, the key, is brighter than the others. To be found at each pixel of ink (more than a
quarter of full tone): at the key, its class; at another digit, the sum of its class and the key's,
0 to 18. All other pixels are background.

Features are 12 x 12 cells of 4 x 4 pixels, and those of a cell depend on the 12 x 12 pixels around
its middle: a cell of a digit sees that digit, and no pixel of any other. Behind the attention each
cell is by itself. So without attention (R = 0) the key is unknown, and the best guess is right
about once in ten. R = 1 can know it in the key's row and column of places, R = 2 everywhere.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR

from crisscross.torch import CrissCrossAttention

SIZE, PLACES, PITCH, BOX, CELL = 48, 4, 12, 8, 4
ON_CANVAS, HELD_OUT = 8, 500
INK, DIM = 0.25, 0.6
BACKGROUND = SUMS = 19
CHANNELS, HIDDEN, REDUCTION = 64, 192, 2
#: gamma is 0 in CCNet's modules, which are added to a trained backbone; here all start together.
GAMMA = 1.0
BATCH, RATE, WEIGHT_OF_BACKGROUND = 24, 5e-3, 0.2
RECURRENCES = (0, 1, 2)


class Digits(NamedTuple):
    images: np.ndarray  # (1797, 8, 8), from 0 to 1
    classes: np.ndarray


@dataclass(frozen=True)
class Canvases:
    """N canvases; `picked` and `corners` say which digits they hold and where, the key first."""

    picked: np.ndarray  # (N, 8)
    corners: np.ndarray  # (N, 8, 2), top and left
    images: np.ndarray  # (N, 1, 48, 48)
    labels: np.ndarray  # (N, 48, 48), as the masks:
    key: np.ndarray  # the key's ink
    aligned: np.ndarray  # ink of other digits in the key's row or column of places
    elsewhere: np.ndarray  # ink of the rest


@dataclass
class Curve:
    """What one network went through."""

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    accuracies: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


class Network(nn.Module):
    """A stem with a small receptive field, criss-cross attention, and a head for each cell."""

    def __init__(self, recurrence: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 32, CELL, stride=CELL),
            nn.ReLU(),
            nn.Conv2d(32, 2 * CHANNELS, 3, padding=1),
            nn.BatchNorm2d(2 * CHANNELS),
            nn.ReLU(),
            nn.Conv2d(2 * CHANNELS, CHANNELS, 1),
        )
        self.attention = CrissCrossAttention(CHANNELS, REDUCTION, recurrence)
        nn.init.constant_(self.attention.get_parameter("gamma"), GAMMA)
        self.head = nn.Sequential(
            nn.Conv2d(CHANNELS, HIDDEN, 1), nn.ReLU(), nn.Conv2d(HIDDEN, SUMS + CELL**2, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (N, 20, 48, 48): sums are the same in a cell, background is by pixel."""
        sums, background = self.head(self.attention(self.stem(x))).split([SUMS, CELL**2], 1)
        sums = functional.interpolate(sums, scale_factor=CELL)
        return torch.cat([sums, functional.pixel_shuffle(background, CELL)], 1)


#: By R.
Networks = dict[int, Network]


def load() -> Digits:
    data = load_digits()
    return Digits((data.images / 16).astype(np.float32), data.target)


def split(digits: Digits, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the digits to train with, and of those held out."""
    order = np.random.default_rng([seed, 0]).permutation(len(digits.classes))
    return order[:-HELD_OUT], order[-HELD_OUT:]


def draw(rng: np.random.Generator, digits: Digits, pool: np.ndarray, count: int) -> Canvases:
    """Draw canvases with digits of the pool."""
    picked = rng.choice(pool, (count, ON_CANVAS))
    places = rng.permuted(np.tile(np.arange(PLACES**2), (count, 1)), axis=1)[:, :ON_CANVAS]
    shifts = CELL * rng.integers(0, 2, (count, 1, 2))
    return compose(digits, picked, PITCH * np.stack(np.divmod(places, PLACES), -1) + shifts)


def compose(digits: Digits, picked: np.ndarray, corners: np.ndarray) -> Canvases:
    count = len(picked)
    images = np.zeros((count, 1, SIZE, SIZE), np.float32)
    labels = np.full((count, SIZE, SIZE), BACKGROUND)
    key, aligned, elsewhere = np.zeros((3, count, SIZE, SIZE), bool)
    for canvas, number in np.ndindex(*picked.shape):
        top, left = corners[canvas, number]
        box = np.s_[canvas, top : top + BOX, left : left + BOX]
        image, own = (each[picked[canvas, number]] for each in digits)
        ink = image > INK
        if number == 0:
            mask, label = key, own
        else:
            same = corners[canvas, number] == corners[canvas, 0]
            mask = aligned if same.any() else elsewhere
            label = own + digits.classes[picked[canvas, 0]]
        images[:, 0][box] = image if number == 0 else DIM * image
        labels[box][ink] = label
        mask[box] = ink
    return Canvases(picked, corners, images, labels, key, aligned, elsewhere)


@torch.no_grad()
def predict(network: Network, images: np.ndarray) -> np.ndarray:
    network.eval()
    parts = [network(part).argmax(1) for part in torch.from_numpy(images).split(100)]
    network.train()
    return torch.cat(parts).numpy()


def judge(network: Network, canvases: Canvases) -> dict[str, float]:
    """Return the share of pixels that are right, for each kind of pixel."""
    right = predict(network, canvases.images) == canvases.labels
    kinds = {
        "others": canvases.aligned | canvases.elsewhere,
        "aligned": canvases.aligned,
        "elsewhere": canvases.elsewhere,
        "key": canvases.key,
        "background": canvases.labels == BACKGROUND,
    }
    return {kind: float(right[mask].mean()) for kind, mask in kinds.items()}


def build(seed: int) -> Networks:
    """Return a network for each R, all with the same parameters."""
    networks = {}
    for recurrence in RECURRENCES:
        torch.manual_seed(seed)
        networks[recurrence] = Network(recurrence)
    return networks


def train(
    networks: Networks, digits: Digits, pool: np.ndarray, watched: Canvases, steps: int, seed: int
) -> dict[int, Curve]:
    """Train all networks on the same canvases, and judge them on others now and then."""
    rng = np.random.default_rng([seed, 1])
    weights = torch.tensor([1.0] * SUMS + [WEIGHT_OF_BACKGROUND])
    optimisers = {r: torch.optim.Adam(each.parameters()) for r, each in networks.items()}
    schedules = {r: OneCycleLR(each, RATE, steps, pct_start=0.1) for r, each in optimisers.items()}
    curves = {r: Curve() for r in networks}
    recent: dict[int, list[float]] = {r: [] for r in networks}
    columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), "{task.description}"
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=steps)
        for step in range(1, steps + 1):
            canvases = draw(rng, digits, pool, BATCH)
            x, labels = torch.from_numpy(canvases.images), torch.from_numpy(canvases.labels)
            for r, network in networks.items():
                start = time.perf_counter()
                loss = functional.cross_entropy(network(x), labels, weights)
                optimisers[r].zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimisers[r].step()
                schedules[r].step()
                curves[r].seconds += time.perf_counter() - start
                recent[r].append(loss.item())
            if step % max(1, steps // 28) == 0:
                for r, curve in curves.items():
                    curve.steps.append(step)
                    curve.losses.append(float(np.mean(recent[r])))
                    curve.accuracies.append(judge(networks[r], watched))
                    recent[r].clear()
                told = ", ".join(f"{curve.losses[-1]:.2f}" for curve in curves.values())
                progress.update(task, description=f"loss {told}")
            progress.advance(task)
    return curves


def list_rows(networks: Networks, curves: dict[int, Curve], canvases: Canvases) -> list[str]:
    names = "all other digits", "in the key's row or column", "elsewhere", "the key", "background"
    rows = [f"| R | {' | '.join(names)} | training |", "| --- " * 7 + "|"]
    for r, network in networks.items():
        cells = " | ".join(f"{100 * share:.1f}%" for share in judge(network, canvases).values())
        rows.append(f"| {r} | {cells} | {curves[r].seconds:.0f} s |")
    return rows


def find_most(labels: np.ndarray) -> str:
    """Return the most frequent label but background."""
    found = labels[labels != BACKGROUND]
    return str(np.bincount(found).argmax()) if found.size else "-"


def plot(networks: Networks, curves: dict[int, Curve], canvases: Canvases, path: Path) -> None:
    """Draw the curves, and the first of the canvases."""
    figure = Figure(figsize=(11, 5.8), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.25, 1))
    loss, aligned, elsewhere = upper.subplots(1, 3)
    for r, curve in curves.items():
        loss.plot(curve.steps, curve.losses, label=f"R = {r}")
        for ax, kind in ((aligned, "aligned"), (elsewhere, "elsewhere")):
            ax.plot(curve.steps, [100 * shares[kind] for shares in curve.accuracies])
    loss.set(title="loss while training", xlabel="steps", ylim=(0, None))
    loss.legend()
    for ax, where in ((aligned, "in the key's row or column"), (elsewhere, "elsewhere")):
        ax.set(title=f"held out, {where}", xlabel="steps", ylabel="pixels right, %", ylim=(0, 100))
        ax.axhline(10, color="grey", linewidth=0.8, linestyle=":")
    canvas, *panels = lower.subplots(1, 2 + len(networks))
    canvas.imshow(canvases.images[0, 0], cmap="gray")
    canvas.set_title("canvas, the key framed")
    predicted = [predict(network, canvases.images[:1])[0] for network in networks.values()]
    titles = ["truth", *(f"R = {r}" for r in networks)]
    for ax, title, labels in zip(panels, titles, [canvases.labels[0], *predicted], strict=True):
        shown = np.ma.masked_equal(labels, BACKGROUND)
        ax.imshow(shown, cmap="viridis", vmin=0, vmax=SUMS - 1, interpolation="nearest")
        ax.set_title(title)
        for top, left in canvases.corners[0]:
            box = np.s_[top : top + BOX, left : left + BOX]
            most, true = (find_most(each[box]) for each in (labels, canvases.labels[0]))
            colour = "black" if most == true else "red"
            ax.text(left + BOX, top + BOX, most, color=colour, fontsize=8, va="bottom")
    top, left = canvases.corners[0, 0]
    for ax in (canvas, *panels):
        frame: dict[str, Any] = {"fill": False, "edgecolor": "tab:orange", "clip_on": False}
        ax.add_patch(Rectangle((left - 1.5, top - 1.5), BOX + 2, BOX + 2, **frame))
        ax.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=110)


def read_number(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("it is negative")
    return number


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=read_number, help="700 by default")
    parser.add_argument("--seed", type=read_number, default=0)
    parser.add_argument("--out", type=Path, default=Path(), help="where digits.png goes: here")
    parser.add_argument("--quick", action="store_true", help="20 steps: to see that it runs")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    steps = (20 if options.quick else 700) if options.steps is None else max(options.steps, 1)
    digits = load()
    pool, held_out = split(digits, options.seed)
    rng = np.random.default_rng([options.seed, 2])
    canvases = draw(rng, digits, held_out, 20 if options.quick else 500)
    watched = draw(rng, digits, held_out, 10 if options.quick else 60)
    networks = build(options.seed)
    print(f"{sum(each.numel() for each in networks[0].parameters()):,} parameters each\n")
    # The arrays are small: more threads than one would mostly wait for each other.
    with threadpool_limits(1):
        curves = train(networks, digits, pool, watched, steps, options.seed)
        print("\n".join(list_rows(networks, curves, canvases)))
        plot(networks, curves, canvases, options.out / "digits.png")


if __name__ == "__main__":
    main()
