"""Pictures: what is drawn and where, what is written, and what is left of figures."""

from __future__ import annotations

from xml.etree import ElementTree

import array_api_strict
import jax
import matplotlib as mpl
import matplotlib.pyplot as plt
import ml_dtypes
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import crisscross
from crisscross import plot
from crisscross.bridge.capsule import Retagged
from crisscross.errors import ArgumentError, ArgumentTypeError, BridgeError
from crisscross.ops import maps

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


def read_colours(ax) -> np.ndarray:
    """(H, W, 3): the colour in the middle of each position, as it comes to the screen."""
    canvas = ax.get_figure().canvas
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[::-1]
    height, width = ax.images[-1].get_array().shape
    points = np.stack(np.meshgrid(range(width), range(height)), -1).reshape(-1, 2)
    x, y = ax.transData.transform(points).astype(int).T
    return pixels[y, x, :3].reshape(height, width, 3)


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


def test_several_positions_are_marked():
    """Of weights that are those of several, put together by the caller."""
    lines = plot.show_attention(WEIGHTS + OTHER, PHOTOGRAPH, at=[(1, 4), (-1, 0), (3, -2)]).lines
    assert [line.get_marker() for line in lines] == ["+"] * 3
    points = [line.get_xydata()[0].tolist() for line in lines]
    assert points == [[4, 1], [0, 4], [5, 3]]


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


@pytest.mark.parametrize("channels", [(), (3,), (4,)])
@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int64", "uint64", "float16", "bfloat16", "float32", "longdouble"]
)
def test_numbers_of_any_kind_are_drawn(dtype, channels):
    """As float64 and uint8 are; matplotlib by itself does not draw all of them."""
    dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    image = (RNG.random((6, 8, *channels)) < 0.5).astype(dtype)
    weights = np.eye(5, 7).astype(dtype)
    expected = read_colours(plot.show_attention(np.eye(5, 7), image.astype(float)))
    if np.issubdtype(image.dtype, np.integer) and channels:
        image *= 255  # colours are of 0 to 255 in integers, of 0 to 1 in reals
    drawn = read_colours(plot.show_attention(weights, image))
    np.testing.assert_allclose(drawn.astype(int), expected, atol=1)


# What is no number

MAGENTA = (255, 0, 255)


@pytest.mark.parametrize("image", [None, PHOTOGRAPH], ids=["alone", "over an image"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_number_has_a_colour_of_its_own(value, image):
    """The others look as they would without."""
    weights = WEIGHTS.copy()
    weights[3, 2] = value
    expected = read_colours(plot.show_attention(WEIGHTS, image))
    assert (expected != MAGENTA).any(-1).all()
    expected[3, 2] = MAGENTA
    ax = plot.show_attention(weights, image)
    np.testing.assert_array_equal(read_colours(ax), expected)
    assert ax.images[-1].norm.vmax == WEIGHTS.max()


@pytest.mark.parametrize("image", [None, PHOTOGRAPH], ids=["alone", "over an image"])
def test_an_entropy_that_is_no_number_has_a_colour_of_its_own(image):
    k = K1.copy()
    k[:, :, 1, 2] = np.nan
    ax = plot.show_entropy(Q1, k, image)
    clean = np.exp(crisscross.attention_entropy(Q1, K1)[0, 0])
    sees = np.zeros((5, 7), bool)
    sees[1, :] = sees[:, 2] = True
    np.testing.assert_array_equal((read_colours(ax) == MAGENTA).all(-1), sees)
    assert ax.images[-1].norm.vmax == pytest.approx(clean[~sees].max())


def test_an_entropy_whose_exponential_no_number_holds_is_drawn(monkeypatch):
    """Rounding of energies of 1e10 leaves as much."""
    entropy = np.ones((1, 1, 5, 7), np.float32)
    entropy[0, 0, 3, 2] = 1000
    monkeypatch.setattr(plot, "attention_entropy", lambda *_: entropy)
    ax = plot.show_entropy(Q1, K1)
    assert np.argwhere((read_colours(ax) == MAGENTA).all(-1)).tolist() == [[3, 2]]
    assert ax.images[-1].norm.vmax == pytest.approx(np.e)


NONE = np.full_like(Q1, np.nan)


@pytest.mark.parametrize(
    "show",
    [
        lambda image: plot.show_attention(NONE[0, 0], image),
        lambda image: plot.show_recurrence([(NONE, NONE)] * 2, image, at=(3, 2))[1],
        lambda image: plot.show_entropy(NONE, NONE, image),
    ],
    ids=["attention", "recurrence", "entropy"],
)
@pytest.mark.parametrize("image", [None, PHOTOGRAPH], ids=["alone", "over an image"])
def test_no_number_at_all_is_drawn(show, image):
    found = (read_colours(show(image)) == MAGENTA).all(-1)
    found[3, 2] = True  # a mark lies there
    assert found.all()


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


@pytest.mark.parametrize("channel_axis", [1, -1])
def test_steps_are_composed_once(channel_axis, monkeypatch):
    """What each shows is that of its own pairs bit for bit; the last step alone has no backward."""
    pairs = [*PAIRS, (K1, Q2), (K2, Q1)]
    pairs = [tuple(np.moveaxis(x, 1, channel_axis) for x in pair) for pair in pairs]
    options = {"at": (1, 4), "heads": 2 if channel_axis == 1 else 1, "channel_axis": channel_axis}
    expected = [crisscross.compose_attention(pairs[-steps:], **options) for steps in (1, 2, 3, 4)]
    calls = []
    backward = maps.criss_cross_attention_backward
    monkeypatch.setattr(
        maps,
        "criss_cross_attention_backward",
        lambda *arrays, **named: calls.append(1) or backward(*arrays, **named),
    )
    axes = plot.show_recurrence(pairs, **options)
    assert len(calls) == 3
    for ax, weights in zip(axes, expected, strict=True):
        np.testing.assert_array_equal(read_data(ax.images[0]), weights[0, 0])


def test_one_step_is_one_axes():
    (ax,) = plot.show_recurrence([(Q1, K1)], at=(1, 4))
    np.testing.assert_allclose(read_data(ax.images[0]), WEIGHTS, rtol=1e-12)


@pytest.mark.parametrize(
    ("head", "number"), [(0, 0), (1, 0), (0, 1), (1, 1), (-2, -1), (np.int8(-1), np.array(-2))]
)
def test_head_and_image_are_chosen(head, number):
    options = {"heads": 2, "channel_axis": -1}
    turned = [tuple(np.moveaxis(x, 1, -1) for x in pair) for pair in PAIRS]
    axes = plot.show_recurrence(turned, at=(1, 4), head=head, number=number, **options)
    expected = crisscross.compose_attention(turned, at=(1, 4), **options)[number, head]
    np.testing.assert_array_equal(read_data(axes[1].images[0]), expected)
    ax = plot.show_entropy(*turned[0], head=head, number=number, **options)
    entropy = crisscross.attention_entropy(*turned[0], **options)[number, head]
    np.testing.assert_array_equal(read_data(ax.images[0]), np.exp(entropy))


@pytest.mark.parametrize(
    "convert",
    [torch.from_numpy, jax.numpy.asarray, array_api_strict.asarray],
    ids=["torch", "jax", "array_api_strict"],
)
def test_queries_and_keys_of_other_libraries(convert):
    pairs = [tuple(convert(x.astype(np.float32)) for x in pair) for pair in PAIRS]
    options = {"head": 1, "number": -1, "heads": 2}
    axes = plot.show_recurrence(pairs, at=(1, 4), **options)
    expected = crisscross.compose_attention(PAIRS, at=(1, 4), heads=2)[1, 1]
    np.testing.assert_allclose(read_data(axes[1].images[0]), expected, rtol=1e-4)
    ax = plot.show_entropy(*pairs[0], **options)
    entropy = crisscross.attention_entropy(Q1, K1, heads=2)[1, 1]
    np.testing.assert_allclose(read_data(ax.images[0]), np.exp(entropy), rtol=1e-4)


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


# Memory of a device


class OnDevice:
    """An array in memory of a CUDA device, whose library copies it to the CPU if asked for that."""

    def __init__(self, host: np.ndarray, asked: list | None = None) -> None:
        self.host, self.asked = host, [] if asked is None else asked
        self.shape, self.dtype = host.shape, host.dtype

    def __getitem__(self, index):
        return OnDevice(self.host[index], self.asked)

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        self.asked.append((dl_device, copy, stream, self.shape))
        assert dl_device == (1, 0), "this would be memory of the device"
        copied = self.host.copy()
        if copied.dtype == ml_dtypes.bfloat16:
            copied = Retagged.of_bfloat16(copied)
        return copied.__dlpack__(max_version=max_version)


class Old(OnDevice):
    """Of before DLPack 1.0."""

    def __dlpack__(self, stream=None):
        raise AssertionError("what is asked for is not known here")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_and_image_of_a_device_are_copied(dtype):
    dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    weights, image = (OnDevice(x.astype(dtype)) for x in (WEIGHTS, PHOTOGRAPH))
    below, above = plot.show_attention(weights, image, at=(1, 4)).images
    np.testing.assert_array_equal(read_data(above), weights.host.astype(float))
    np.testing.assert_array_equal(read_data(below), image.host.astype(float))
    for array in (weights, image):
        assert array.asked == [((1, 0), True, None, array.shape)]


def test_no_more_of_a_device_is_copied_than_is_drawn(monkeypatch):
    """Of all heads of all images, one plane."""
    entropy = OnDevice(RNG.random((2, 3, 5, 7)))
    steps = [OnDevice(RNG.random((2, 3, 5, 7))) for _ in range(2)]
    monkeypatch.setattr(plot, "attention_entropy", lambda *_: entropy)
    monkeypatch.setattr(plot, "compose_steps", lambda *_, **__: iter(steps))
    ax = plot.show_entropy(Q1, K1, head=2, number=-1)
    np.testing.assert_array_equal(read_data(ax.images[0]), np.exp(entropy.host[1, 2]))
    axes = plot.show_recurrence(PAIRS, at=(1, 4), head=-1, number=1)
    for ax, step in zip(axes, steps, strict=True):
        np.testing.assert_array_equal(read_data(ax.images[0]), step.host[1, 2])
    for array in (entropy, *steps):
        assert array.asked == [((1, 0), True, None, (5, 7))]


@pytest.mark.parametrize("convert", [torch.from_numpy, jax.numpy.asarray], ids=["torch", "jax"])
def test_libraries_copy_when_asked_so(convert, monkeypatch):
    """Here on the CPU, which they are told to be no CPU."""
    weights = convert(WEIGHTS.astype(np.float32))
    describe = plot.describe
    monkeypatch.setattr(plot, "describe", lambda *of: describe(*of)._replace(device="cuda:0"))
    ax = plot.show_attention(weights)
    np.testing.assert_array_equal(read_data(ax.images[0]), np.asarray(weights))


@pytest.mark.parametrize("name", ["weights", "image"])
def test_a_library_that_does_not_copy_is_named(name):
    arguments = {"weights": WEIGHTS, "image": PHOTOGRAPH}
    with pytest.raises(BridgeError) as caught:
        plot.show_attention(**{**arguments, name: Old(arguments[name])})
    (mismatch,) = caught.value.mismatches
    assert caught.value.function == "show_attention"
    assert str(mismatch).startswith(
        f"{name}.device: expected memory that its library copies to the CPU by DLPack; copy the "
        "array there first, got cuda:0 (TypeError: "
    )
    assert plt.get_fignums() == []


def test_a_tensor_that_requires_grad_is_refused():
    with pytest.raises(BridgeError, match=r"^show_attention: weights: .*call x\.detach"):
        plot.show_attention(torch.zeros(5, 7, requires_grad=True))
    assert plt.get_fignums() == []


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


@pytest.mark.parametrize("shape", [(7,), (2, 5, 7), (1, 2, 5, 7), (2, 1, 5, 7), (0, 7), (5, 0)])
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
        (PAIRS, [(1, 4), (2, 3)], r"show_recurrence: at: expected one position, \(y, x\), got 2"),
        ([(Q1[:, :, None], K1[:, :, None])], (0, 1, 4), "show_recurrence: pairs: expected q and k"),
    ],
)
def test_pairs_that_do_not_fit_are_named_before_anything_is_drawn(pairs, at, message):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=f"^{message}"):
        plot.show_recurrence(pairs, at=at)
    assert plt.get_fignums() == []


@pytest.mark.parametrize("name", ["show_recurrence", "show_entropy"])
@pytest.mark.parametrize(
    ("changes", "error", "lines"),
    [
        ({"head": 2}, ArgumentError, "head: expected an index in [-2, 2), got 2"),
        ({"head": -3}, ArgumentError, "head: expected an index in [-2, 2), got -3"),
        ({"number": 3}, ArgumentError, "number: expected an index in [-3, 3), got 3"),
        ({"number": -4}, ArgumentError, "number: expected an index in [-3, 3), got -4"),
        ({"head": 1.0}, ArgumentTypeError, "head: expected an integer, got 1.0"),
        ({"head": True}, ArgumentTypeError, "head: expected an integer, got True"),
        ({"number": "0"}, ArgumentTypeError, "number: expected an integer, got '0'"),
        ({"number": None}, ArgumentTypeError, "number: expected an integer, got None"),
        (
            {"head": slice(1), "number": 7},
            ArgumentError,
            "head: expected an integer, got slice slice(None, 1, None)\n"
            "number: expected an index in [-3, 3), got 7",
        ),
    ],
)
def test_a_head_or_an_image_that_is_not_there_is_named(name, changes, error, lines):
    q = np.zeros((3, 6, 5, 7))
    arguments = ([(q, q)],) if name == "show_recurrence" else (q, q)
    at = {"at": (1, 4)} if name == "show_recurrence" else {}
    with pytest.raises(error) as caught:
        getattr(plot, name)(*arguments, **at, heads=2, **changes)
    assert caught.value.function == name
    assert [str(mismatch) for mismatch in caught.value.mismatches] == lines.split("\n")
    assert plt.get_fignums() == []


SHAPE = "image.shape: expected (height, width) or (height, width, 3 or 4), of a pixel or more, got "
DTYPE = "image.dtype: expected bool, integers or reals, got "
ARRAY = "an array of NumPy, CuPy, PyTorch, JAX or any library that speaks DLPack"


@pytest.mark.parametrize(
    ("image", "error", "line"),
    [
        (np.zeros(5), ArgumentError, f"{SHAPE}(5,)"),
        (np.zeros((3, 5, 7)), ArgumentError, f"{SHAPE}(3, 5, 7)"),
        (np.zeros((5, 7, 1)), ArgumentError, f"{SHAPE}(5, 7, 1)"),
        (np.zeros((1, 5, 7, 3)), ArgumentError, f"{SHAPE}(1, 5, 7, 3)"),
        (np.zeros((0, 7)), ArgumentError, f"{SHAPE}(0, 7)"),
        (np.zeros((5, 0, 3)), ArgumentError, f"{SHAPE}(5, 0, 3)"),
        (np.array(1.0), ArgumentError, f"{SHAPE}()"),
        (np.zeros((5, 7), complex), ArgumentTypeError, f"{DTYPE}complex128"),
        (np.zeros((5, 7), "V4"), ArgumentTypeError, f"{DTYPE}void32"),
        (np.full((5, 7), "a"), BridgeError, "image: expected a plain numeric dtype, got dtype <U1"),
        ([[1.0]], ArgumentTypeError, f"image: expected {ARRAY}, got list"),
        ("photograph.png", ArgumentTypeError, f"image: expected {ARRAY}, got str"),
    ],
)
@pytest.mark.parametrize("name", SHOW)
def test_what_is_no_image_is_named(name, image, error, line):
    show = {
        "show_attention": lambda: plot.show_attention(WEIGHTS, image),
        "show_recurrence": lambda: plot.show_recurrence(PAIRS, image, at=(1, 4)),
        "show_entropy": lambda: plot.show_entropy(Q1, K1, image),
    }
    with pytest.raises(error) as caught:
        show[name]()
    assert type(caught.value) is error
    assert caught.value.function == name
    assert [str(mismatch) for mismatch in caught.value.mismatches] == [line]
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    ("weights", "line"),
    [
        ([[1.0]], f"weights: expected {ARRAY}, got list"),
        (
            WEIGHTS.astype(complex),
            "weights.dtype: expected bool, integers or reals, got complex128",
        ),
    ],
)
def test_what_are_no_weights_are_named(weights, line):
    with pytest.raises(ArgumentTypeError) as caught:
        plot.show_attention(weights)
    assert str(caught.value) == f"show_attention: {line}"
    assert plt.get_fignums() == []


def test_all_that_does_not_fit_is_named_at_once():
    with pytest.raises(ArgumentError) as caught:
        plot.show_attention([[1.0]], np.zeros(3), at=(1.5, 0), path="picture.pdf")
    named = [mismatch.argument for mismatch in caught.value.mismatches]
    assert named == ["weights", "image.shape", "path", "at"]


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
