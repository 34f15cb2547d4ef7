"""Pictures: what is drawn and where, what is written, and what is left of figures."""

from __future__ import annotations

from xml.etree import ElementTree

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import crisscross
from crisscross import plot
from crisscross.errors import ArgumentError, ArgumentTypeError

mpl.use("agg")

RNG = np.random.default_rng(0)
Q1, K1, Q2, K2 = RNG.standard_normal((4, 2, 6, 5, 7))
PAIRS = [(Q1, K1), (Q2, K2)]
WEIGHTS = crisscross.attention_map(Q1, K1, at=(1, 4))[0, 0]
OTHER = crisscross.attention_map(Q2, K2, at=(1, 4))[0, 0]
PHOTOGRAPH = RNG.random((50, 90))
#: Pixels are centred on their positions, the first row is above.
EXTENT = (-0.5, 6.5, 4.5, -0.5)
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(autouse=True)
def closed_figures():
    """A test begins without figures of others, and leaves none."""
    plt.close("all")
    yield
    plt.close("all")


def read_data(image) -> np.ndarray:
    return np.asarray(image.get_array())


# One position


def test_the_weights_are_drawn_over_their_positions():
    ax = plot.show_attention(WEIGHTS, title="seen")
    (drawn,) = ax.images
    np.testing.assert_array_equal(read_data(drawn), WEIGHTS)
    assert drawn.get_alpha() is None
    assert (*ax.get_xlim(), *ax.get_ylim()) == EXTENT
    assert tuple(drawn.get_extent()) == EXTENT
    assert ax.get_title() == "seen"
    assert not ax.lines
    assert plt.get_fignums() == [ax.get_figure().number]


def test_the_brightest_is_the_largest_weight():
    colours = plot.show_attention(WEIGHTS).images[0].to_rgba(WEIGHTS)[..., :3].sum(-1)
    order = np.argsort(WEIGHTS, axis=None)
    assert (np.diff(colours.ravel()[order]) >= 0).all()
    assert np.unravel_index(colours.argmax(), WEIGHTS.shape) == np.unravel_index(
        WEIGHTS.argmax(), WEIGHTS.shape
    )


@pytest.mark.parametrize(
    "image",
    [
        PHOTOGRAPH,
        RNG.random((10, 3, 3)),
        RNG.integers(0, 256, (9, 30, 4), np.uint8),
        torch.from_numpy(RNG.random((8, 9))),
    ],
    ids=["grey", "rgb", "rgba", "torch"],
)
def test_an_image_of_any_size_lies_below(image):
    ax = plot.show_attention(WEIGHTS, image)
    below, above = ax.images
    np.testing.assert_array_equal(read_data(below), np.asarray(image))
    np.testing.assert_array_equal(read_data(above), WEIGHTS)
    assert tuple(below.get_extent()) == tuple(above.get_extent()) == EXTENT
    alpha = above.get_alpha()
    assert 0 < alpha.min() < alpha.max() < 1  # it shines through, less so where weights are large
    assert alpha.argmax() == WEIGHTS.argmax()


@pytest.mark.parametrize("at", [(1, 4), (-4, -3), np.array([1, 4])])
def test_the_position_is_marked(at):
    (line,) = plot.show_attention(WEIGHTS, PHOTOGRAPH, at=at).lines
    np.testing.assert_array_equal(line.get_xydata(), [[4, 1]])  # x before y
    assert line.get_marker() == "+"


def test_axes_of_size_one_in_front_are_left_out():
    ax = plot.show_attention(crisscross.attention_map(Q1[:1], K1[:1], at=[(1, 4)]))
    np.testing.assert_array_equal(read_data(ax.images[0]), WEIGHTS)


def test_arrays_of_other_libraries_are_drawn():
    ax = plot.show_attention(torch.from_numpy(WEIGHTS))
    np.testing.assert_array_equal(read_data(ax.images[0]), WEIGHTS)


def test_the_callers_axes_are_drawn_on():
    _, (left, right) = plt.subplots(1, 2)
    assert plot.show_attention(WEIGHTS, ax=right) is right
    assert len(right.images) == 1 and not left.images
    assert len(plt.get_fignums()) == 1


def test_a_position_without_keys_is_drawn():
    """No weight at all: nothing to scale colours by."""
    plot.show_attention(np.zeros((5, 7)), PHOTOGRAPH).get_figure().canvas.draw()


# Files


def draw(weights, path) -> None:
    plot.show_attention(weights, PHOTOGRAPH, at=(1, 4), path=path)


def test_png_shows_the_weights(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for weights, path in zip((WEIGHTS, OTHER, WEIGHTS), paths, strict=True):
        draw(weights, str(path))
    one, other, again = (plt.imread(path) for path in paths)
    assert min(one.shape[:2]) > 300
    assert len(np.unique(one.reshape(-1, one.shape[-1]), axis=0)) > 100
    np.testing.assert_array_equal(one, again)
    assert (np.abs(one - other).max(-1) > 0.05).mean() > 0.02


def test_svg_is_xml_and_shows_the_weights(tmp_path):
    found = []
    for number, weights in enumerate((WEIGHTS, OTHER)):
        path = tmp_path / f"{number}.svg"
        draw(weights, path)
        root = ElementTree.parse(path).getroot()
        assert root.tag == f"{SVG}svg"
        images = [*root.iter(f"{SVG}image")]
        assert images
        found.append([image.get("{http://www.w3.org/1999/xlink}href") for image in images])
    assert found[0] != found[1]


SHOW = {
    "show_attention": lambda **options: plot.show_attention(WEIGHTS, PHOTOGRAPH, **options),
    "show_recurrence": lambda **options: plot.show_recurrence(PAIRS, at=(1, 4), **options),
    "show_entropy": lambda **options: plot.show_entropy(Q1, K1, PHOTOGRAPH, **options),
}


@pytest.mark.parametrize("suffix", [".png", ".svg"])
@pytest.mark.parametrize("name", SHOW)
def test_a_figure_that_was_written_is_closed(name, suffix, tmp_path):
    """Pyplot would keep it, and warn after twenty; one that was not written is for the caller."""
    path = tmp_path / f"picture{suffix}"
    drawn = SHOW[name](path=path)
    assert path.stat().st_size > 5000
    assert plt.get_fignums() == []
    assert np.ravel(drawn)[0].images
    SHOW[name]()
    assert len(plt.get_fignums()) == 1


@pytest.mark.parametrize("name", ["show_attention", "show_entropy"])
def test_a_figure_of_the_callers_is_written_as_a_whole_and_left_open(name, tmp_path):
    _, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
    left.set_facecolor("red")
    path = tmp_path / "picture.png"
    SHOW[name](ax=right, path=path)
    assert len(plt.get_fignums()) == 1
    pixels = plt.imread(path)
    assert pixels.shape[:2] == (450, 1200)
    assert (pixels[..., :3] == [1, 0, 0]).all(-1).mean() > 0.1


# Several steps


def test_each_number_of_steps_has_its_axes():
    axes = plot.show_recurrence(PAIRS, PHOTOGRAPH, at=(1, -3))
    assert axes.shape == (2,)
    expected = [
        crisscross.attention_map(Q2, K2, at=(1, 4)),  # the last step, not the first
        crisscross.compose_attention(PAIRS, at=(1, 4)),
    ]
    for ax, weights in zip(axes, expected, strict=True):
        below, above = ax.images
        np.testing.assert_array_equal(read_data(below), PHOTOGRAPH)
        np.testing.assert_allclose(read_data(above), weights[0, 0], rtol=1e-12)
        np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[4, 1]])
    assert [ax.get_title() for ax in axes] == [
        "R = 1: reaches 31.4% of the image",
        "R = 2: reaches 100.0% of the image",
    ]


def test_one_step_is_one_axes():
    (ax,) = plot.show_recurrence([(Q1, K1)], at=(1, 4))
    np.testing.assert_allclose(read_data(ax.images[0]), WEIGHTS, rtol=1e-12)


@pytest.mark.parametrize(("head", "number"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_head_and_image_are_chosen(head, number):
    options = {"heads": 2, "channel_axis": -1}
    turned = [tuple(np.moveaxis(x, 1, -1) for x in pair) for pair in PAIRS]
    axes = plot.show_recurrence(turned, at=(1, 4), head=head, number=number, **options)
    expected = crisscross.compose_attention(turned, at=(1, 4), **options)[number, head]
    np.testing.assert_array_equal(read_data(axes[1].images[0]), expected)
    ax = plot.show_entropy(*turned[0], head=head, number=number, **options)
    entropy = crisscross.attention_entropy(*turned[0], **options)[number, head]
    np.testing.assert_array_equal(read_data(ax.images[0]), np.exp(entropy))


# Entropy


def test_entropy_is_told_in_keys():
    """Of keys that are all alike: 11 of them, and the colours go from 1 key to the most."""
    ax = plot.show_entropy(Q1, np.zeros_like(K1), PHOTOGRAPH)
    below, above = ax.images
    np.testing.assert_array_equal(read_data(below), PHOTOGRAPH)
    np.testing.assert_allclose(read_data(above), 11, rtol=1e-12)
    assert above.norm.vmin == 1
    assert above.norm.vmax == pytest.approx(11)
    assert len(ax.get_figure().axes) == 2  # with the scale of colours


def test_entropy_of_single_keys_has_a_scale_too():
    ax = plot.show_entropy(Q1, K1, axes=(0,), key_mask=np.zeros((2, 5, 7), bool))
    ax.get_figure().canvas.draw()
    np.testing.assert_array_equal(read_data(ax.images[0]), 1)
    norm = ax.images[0].norm
    assert norm.vmin == 1 < norm.vmax


def test_the_scale_of_colours_joins_the_callers_figure():
    """Whatever figure pyplot holds for the current one, and one that it knows nothing of."""
    figure = Figure()
    ax = figure.subplots()
    current = plt.figure()
    plot.show_entropy(Q1, K1, ax=ax)
    assert len(figure.axes) == 2
    assert not current.axes


# Errors


@pytest.mark.parametrize("name", SHOW)
@pytest.mark.parametrize("path", ["picture.pdf", "picture", "picture.PNG"])
def test_another_suffix_is_named(name, path, tmp_path):
    with pytest.raises(ArgumentError) as caught:
        SHOW[name](path=tmp_path / path)
    assert caught.value.function == name
    expected = (
        f"path: expected a name that ends in one of ('.png', '.svg'), got '{tmp_path}/{path}'"
    )
    assert [str(mismatch) for mismatch in caught.value.mismatches] == [expected]
    assert plt.get_fignums() == []
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("shape", [(7,), (2, 5, 7), (1, 2, 5, 7), (2, 1, 5, 7)])
def test_what_is_not_one_image_is_named(shape):
    with pytest.raises(ArgumentError) as caught:
        plot.show_attention(np.zeros(shape))
    expected = f"show_attention: weights.shape: expected one image: (H, W), got {shape}"
    assert str(caught.value) == expected
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    ("at", "error"), [((1,), ArgumentError), ((5, 0), ArgumentError), ("14", ArgumentTypeError)]
)
def test_a_position_outside_is_named(at, error):
    with pytest.raises(error, match=r"^show_attention: at: expected a position"):
        plot.show_attention(WEIGHTS, at=at)
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    ("pairs", "at", "message"),
    [
        ([], (1, 4), "compose_attention: pairs: expected at least one"),
        (3, (1, 4), "compose_attention: pairs: expected at least one"),
        ([(Q1, K1), (Q2, 3)], (1, 4), r"compose_attention: pairs\[1\]\.k: expected an array"),
        ([(Q1[:1], K1[:1]), (Q2, K2)], (1, 4), r"compose_attention: pairs\[1\]\.q\.shape"),
        (PAIRS, (5, 4), "compose_attention: at: expected a position"),
        (PAIRS, [(1, 4), (2, 3)], r"show_recurrence: weights\.shape: expected one image"),
    ],
)
def test_pairs_that_do_not_fit_are_named_before_anything_is_drawn(pairs, at, message):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=f"^{message}"):
        plot.show_recurrence(pairs, at=at)
    assert plt.get_fignums() == []


def test_an_image_that_is_none_leaves_no_figure():
    with pytest.raises(ArgumentTypeError, match="got list"):
        plot.show_attention(WEIGHTS, [[1.0]])
    assert plt.get_fignums() == []


def test_a_missing_matplotlib_is_one_sentence(run_python):
    code = """
import sys
sys.modules["matplotlib"] = None
try:
    import crisscross.plot
except ImportError as error:
    print(type(error).__name__, "|", error)
"""
    kind, _, message = run_python(code).strip().partition(" | ")
    assert kind == "MissingDependencyError"
    assert message == "crisscross.plot needs matplotlib: pip install matplotlib"
