"""Parameters in files and back, and those of the originals: modules of the same names and sums."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from torch.nn import functional

from crisscross import nn
from crisscross.errors import ArgumentError, ArgumentTypeError, BridgeError, CrissCrossError
from tests.nn.definitions import find_neighbours

# Files

SUFFIXES = (".npz", ".safetensors")
MAKE = {
    "criss_cross": lambda dtype: nn.init_criss_cross_block(8, dtype=dtype, gamma=0.5),
    "criss_cross of its own": lambda dtype: nn.init_criss_cross_block(8, dtype=dtype, recurrence=2),
    "position": lambda dtype: nn.init_position_attention_block(8, dtype=dtype, spatial_ndim=3),
    "channel": lambda dtype: nn.init_channel_attention_block(dtype=dtype, gamma=0.25),
    "non_local": lambda dtype: nn.init_non_local_block(8, dtype=dtype, zero=False),
    "head": lambda dtype: nn.init_rcca_head(8, classes=3, outer=4, dtype=dtype, norm="batch"),
}


def assert_same(actual, expected) -> None:
    assert list(actual) == list(expected)
    for name, array in expected.items():
        assert type(actual[name]) is np.ndarray
        assert (actual[name].dtype, actual[name].shape) == (array.dtype, array.shape), name
        assert actual[name].tobytes() == array.tobytes(), name
        assert actual[name].flags.writeable, name


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("block", MAKE)
def test_there_and_back(block, dtype, suffix, tmp_path):
    """Bit for bit, in every dtype that the format knows."""
    parameters = dict(sorted(MAKE[block](dtype).items()))
    path = tmp_path / f"parameters{suffix}"
    if (dtype, suffix) == ("bfloat16", ".npz"):
        with pytest.raises(ArgumentError) as caught:
            nn.save_parameters(path, parameters)
        assert [str(mismatch) for mismatch in caught.value.mismatches] == [
            f"parameters[{name!r}].dtype: "
            "expected one of float16, float32, float64 in a .npz file, got bfloat16"
            for name in parameters
        ]
        assert not path.exists()
        return
    nn.save_parameters(path, parameters)
    assert_same(dict(sorted(nn.load_parameters(path).items())), parameters)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_single_number_keeps_its_shape(suffix, tmp_path):
    """() is not (1,): a state dict of mmcv has such a gamma."""
    path = tmp_path / f"parameters{suffix}"
    nn.save_parameters(path, {"gamma": np.array(0.5), "other": np.array([0.5])})
    loaded = nn.load_parameters(path)
    assert (loaded["gamma"].shape, loaded["other"].shape) == ((), (1,))
    assert loaded["gamma"] == 0.5


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_arrays_in_another_order(suffix, tmp_path):
    """A transposed matrix is that matrix, not its memory."""
    path, matrix = tmp_path / f"parameters{suffix}", np.arange(6.0).reshape(2, 3).T[:, ::-1]
    nn.save_parameters(path, {"matrix": matrix})
    np.testing.assert_array_equal(nn.load_parameters(path)["matrix"], matrix)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("convert", [torch.from_numpy, jax.numpy.asarray])
def test_arrays_of_other_libraries(convert, suffix, tmp_path):
    parameters = nn.init_criss_cross_block(8, gamma=0.5)
    path = tmp_path / f"parameters{suffix}"
    nn.save_parameters(path, {name: convert(array) for name, array in parameters.items()})
    loaded = nn.load_parameters(path)
    assert_same({name: loaded[name] for name in parameters}, parameters)


def test_bfloat16_of_torch(tmp_path):
    path, tensor = tmp_path / "parameters.safetensors", torch.rand(3, 4, dtype=torch.bfloat16)
    nn.save_parameters(path, {"x": tensor})
    loaded = nn.load_parameters(path)["x"]
    assert loaded.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(loaded.astype(np.float32), tensor.float().numpy())
    assert torch.equal(safetensors.torch.load_file(path)["x"], tensor)


def test_the_files_are_those_of_the_formats(tmp_path):
    """What others write we read, and they what we write."""
    parameters = nn.init_criss_cross_block(8)
    ours, theirs = tmp_path / "ours.npz", tmp_path / "theirs.npz"
    nn.save_parameters(ours, parameters)
    with zipfile.ZipFile(ours) as archive:
        assert sorted(archive.namelist()) == sorted(f"{name}.npy" for name in parameters)
    np.savez(theirs, **parameters)
    assert_same(nn.load_parameters(theirs), parameters)
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    nn.save_parameters(ours, parameters)
    found = safetensors.numpy.load_file(ours)
    assert found.keys() == parameters.keys()
    assert all(found[name].tobytes() == array.tobytes() for name, array in parameters.items())
    safetensors.numpy.save_file(parameters, theirs)
    assert nn.load_parameters(theirs).keys() == parameters.keys()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_path_may_be_text(suffix, tmp_path):
    path = str(tmp_path / f"parameters{suffix}")
    nn.save_parameters(path, {"gamma": np.ones(1)})
    assert nn.load_parameters(path)["gamma"] == 1
    assert [file.name for file in tmp_path.iterdir()] == [f"parameters{suffix}"]


class Trap:
    """Makes a folder if it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.mkdir, (self.path,))


def test_nothing_in_a_file_is_executed(tmp_path):
    """Neither in an archive of objects, nor in a pickle that goes by the name of one."""
    trap, path = Trap(tmp_path / "sprung"), tmp_path / "parameters.npz"
    np.savez(path, gamma=np.array([trap], object))
    with pytest.raises(ArgumentError, match="allow_pickle=False"):
        nn.load_parameters(path)
    path.write_bytes(pickle.dumps(trap))
    with pytest.raises(ArgumentError, match="not a zip file"):
        nn.load_parameters(path)
    assert not trap.path.exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_any_name_is_one(suffix, tmp_path):
    """Those of NumPy's own arguments too."""
    parameters = {name: np.full(2, number) for number, name in enumerate(("file", "args", "a b"))}
    parameters = {name: array.astype("f8") for name, array in parameters.items()}
    nn.save_parameters(tmp_path / f"x{suffix}", parameters)
    assert_same(
        dict(sorted(nn.load_parameters(tmp_path / f"x{suffix}").items())),
        dict(sorted(parameters.items())),
    )


def write_compressed(path: Path) -> bytes:
    np.savez_compressed(path, gamma=np.arange(1000.0))
    return path.read_bytes()


def change(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


BROKEN = {
    "empty.npz": lambda _: b"",
    "cut.npz": lambda path: write_compressed(path)[:-100],
    "changed.npz": lambda path: change(write_compressed(path)),
    "text.npz": lambda _: b"PK of text",
    "empty.safetensors": lambda _: b"",
    "cut.safetensors": lambda _: safetensors.numpy.save({"gamma": np.arange(9.0)})[:-8],
    "text.safetensors": lambda _: b"a text that is longer than a length",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(BROKEN[name](path))
    with pytest.raises(ArgumentError) as caught:
        nn.load_parameters(path)
    (mismatch,) = caught.value.mismatches
    assert mismatch.argument == "path"
    assert mismatch.expected == f"a {path.suffix} file of arrays"
    assert mismatch.got.startswith(f"{str(path)!r}: ")


def test_an_archive_of_something_else_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("readme.txt", "no array")
    with pytest.raises(ArgumentError, match="magic string is not correct"):
        nn.load_parameters(tmp_path / "x.npz")
    np.save(tmp_path / "x", np.ones(3))
    (tmp_path / "x.npy").rename(tmp_path / "y.npz")
    with pytest.raises(ArgumentError, match="not a zip file"):
        nn.load_parameters(tmp_path / "y.npz")
    with pytest.raises(FileNotFoundError):
        nn.load_parameters(tmp_path / "z.npz")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_norms_count_is_left_out(suffix, tmp_path):
    """PyTorch's batch norms keep an integer, which is no parameter."""
    path = tmp_path / f"x{suffix}"
    state = {"bn.weight": np.ones(3), "bn.num_batches_tracked": np.array(7)}
    if suffix == ".npz":
        np.savez(path, **state)
    else:
        safetensors.numpy.save_file(state, path)
    assert list(nn.load_parameters(path)) == ["bn.weight"]
    nn.save_parameters(path, state)
    assert list(nn.load_parameters(path)) == ["bn.weight"]


def test_blocks_take_a_state_dict_as_it_is():
    """With what PyTorch's norms count."""
    parameters = nn.init_rcca_head(8, classes=3, inner=8, outer=4, gamma=0.5, dtype="float64")
    x = np.random.default_rng(0).standard_normal((1, 8, 3, 4))
    counted = {**parameters, "conva.1.num_batches_tracked": np.array(7)}
    np.testing.assert_array_equal(nn.rcca_head(counted, x), nn.rcca_head(parameters, x))


def test_what_cannot_be_written_is_named(tmp_path):
    parameters = {
        "grad": torch.ones(2, requires_grad=True),
        "list": [1.0],
        3: np.ones(2),
        "__metadata__": np.ones(2),
    }
    with pytest.raises(CrissCrossError) as caught:
        nn.save_parameters(tmp_path / "x.safetensors", parameters)
    assert caught.value.function == "save_parameters"
    assert [mismatch.argument for mismatch in caught.value.mismatches] == [
        "parameters['grad']",
        "parameters['list']",
        "parameters",
        "parameters",
    ]
    assert not [*tmp_path.iterdir()]
    with pytest.raises(ArgumentTypeError, match="parameters: expected a mapping"):
        nn.save_parameters(tmp_path / "x.npz", [np.ones(2)])


@pytest.mark.parametrize("convert", [nn.from_ccnet, nn.from_mmcv, nn.from_paddleseg])
@pytest.mark.parametrize("state", [None, [1.0], {1: np.ones(2)}])
def test_a_state_that_is_none(convert, state):
    with pytest.raises(ArgumentTypeError) as caught:
        convert(state)
    assert caught.value.function == convert.__name__
    assert [mismatch.argument for mismatch in caught.value.mismatches] == ["state"]


@pytest.mark.parametrize("convert", [nn.from_ccnet, nn.from_mmcv])
@pytest.mark.parametrize("epsilon", ["a", 0.0, -5.0, np.nan])
def test_an_epsilon_that_is_none(convert, epsilon):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=r"epsilon: expected a "):
        convert({"gamma": np.ones(1)}, epsilon=epsilon)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_objects_are_not_written(suffix, tmp_path):
    with pytest.raises(BridgeError, match="got dtype object"):
        nn.save_parameters(tmp_path / f"x{suffix}", {"gamma": np.array([None])})
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", ["int64", "bool", "complex128"])
def test_a_dtype_that_is_no_parameters(dtype, suffix, tmp_path):
    """Neither written nor read, in either format."""
    parameters = {"gamma": np.ones(1, np.float32), "count": np.ones(1, dtype)}
    path = tmp_path / f"x{suffix}"
    with pytest.raises(ArgumentError) as caught:
        nn.save_parameters(path, parameters)
    (mismatch,) = caught.value.mismatches
    assert (mismatch.argument, mismatch.got) == ("parameters['count'].dtype", dtype)
    assert not path.exists()
    if suffix == ".npz":
        np.savez(path, **parameters)
    elif dtype == "complex128":
        return  # the format has none
    else:
        safetensors.numpy.save_file(parameters, path)
    with pytest.raises(ArgumentError) as caught:
        nn.load_parameters(path)
    (mismatch,) = caught.value.mismatches
    assert mismatch.argument == f"{path}['count'].dtype"
    assert mismatch.expected.endswith(f"in a {suffix} file")


def test_bfloat16_that_an_archive_lost_is_not_read(tmp_path):
    """NumPy writes its bytes without saying what they are."""
    np.savez(tmp_path / "x.npz", gamma=np.ones(1, ml_dtypes.bfloat16))
    with pytest.raises(ArgumentError, match=r"\['gamma'\]\.dtype: expected one of float16"):
        nn.load_parameters(tmp_path / "x.npz")


@pytest.mark.parametrize("name", ["x.pt", "x", "x.npz.gz", "x.NPZ"])
def test_another_suffix_is_named(name, tmp_path):
    path = tmp_path / name
    expected = f"path: expected a name that ends in one of {SUFFIXES}, got {str(path)!r}"
    with pytest.raises(ArgumentError) as caught:
        nn.save_parameters(path, {"gamma": np.ones(1)})
    assert str(caught.value) == f"save_parameters: {expected}"
    assert not path.exists()
    path.write_bytes(b"")
    with pytest.raises(ArgumentError) as caught:
        nn.load_parameters(path)
    assert str(caught.value) == f"load_parameters: {expected}"


def test_missing_safetensors_is_one_sentence(run_python, tmp_path):
    code = f"""
import sys
sys.modules["safetensors"] = None
import numpy as np
from crisscross import nn
path = {str(tmp_path / "x.safetensors")!r}
open(path, "wb").close()
parameters = {{"x": np.ones(1)}}
for call in (nn.save_parameters, parameters), (nn.load_parameters,):
    try:
        call[0](path, *call[1:])
    except ImportError as error:
        print(type(error).__name__, "|", error)
nn.save_parameters({str(tmp_path / "x.npz")!r}, parameters)
"""
    expected = (
        "MissingDependencyError | "
        ".safetensors files need the package safetensors: pip install safetensors"
    )
    assert run_python(code).splitlines() == [expected] * 2


# The originals: modules of torch with the structure, and so with the names, of theirs.

CHANNELS, INNER, OUTER, CLASSES = 16, 8, 5, 3


class Scale(torch.nn.Module):
    """As mmcv keeps gamma: a single number of its own module."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.0))


class Attention(torch.nn.Module):
    """Criss-cross attention by its definition, with all energies."""

    def __init__(self, names: str, gamma: torch.nn.Module | None = None) -> None:
        super().__init__()
        self.names = [
            names.format(*word) for word in (("query", "q"), ("key", "k"), ("value", "v"))
        ]
        for name, outputs in zip(self.names, (2, 2, INNER), strict=True):
            setattr(self, name, torch.nn.Conv2d(INNER, outputs, 1))
        self.gamma = torch.nn.Parameter(torch.zeros(1)) if gamma is None else gamma

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (getattr(self, name)(x).flatten(2) for name in self.names)
        seen = torch.from_numpy(find_neighbours(x.shape[2:]))
        energies = torch.where(seen, q.transpose(1, 2) @ k, -torch.inf)
        out = (v @ energies.softmax(-1).transpose(1, 2)).reshape(x.shape)
        return getattr(self.gamma, "scale", self.gamma) * out + x


class AbsoluteNorm(torch.nn.BatchNorm2d):
    """InPlaceABN: the weight's absolute value, and an activation of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight.abs() + self.eps
        x = functional.batch_norm(x, self.running_mean, self.running_var, weight, self.bias)
        return functional.leaky_relu(x, 0.01)


def convolve(inputs: int, outputs: int, bias: bool = False) -> torch.nn.Conv2d:
    return torch.nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)


class OfCCNet(torch.nn.Module):
    """Today's names, or those of its first checkpoints."""

    def __init__(self, a: str = "conva", attention: str = "cca", b: str = "convb") -> None:
        super().__init__()
        self.order = (a, attention, b)
        setattr(self, a, torch.nn.Sequential(convolve(CHANNELS, INNER), AbsoluteNorm(INNER)))
        setattr(self, attention, Attention("{0}_conv"))
        setattr(self, b, torch.nn.Sequential(convolve(INNER, INNER), AbsoluteNorm(INNER)))
        self.bottleneck = torch.nn.Sequential(
            convolve(CHANNELS + INNER, OUTER),
            AbsoluteNorm(OUTER),
            torch.nn.Dropout2d(0.1),
            torch.nn.Conv2d(OUTER, CLASSES, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, attention, b = (getattr(self, name) for name in self.order)
        features = b(attention(attention(a(x))))
        return self.bottleneck(torch.cat([x, features], 1))


class ConvModule(torch.nn.Module):
    """mmcv's: a convolution without bias, its norm, and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = convolve(inputs, outputs)
        self.bn = torch.nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x)).relu()


class OfMmseg(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_seg = torch.nn.Conv2d(OUTER, CLASSES, 1)
        self.convs = torch.nn.Sequential(ConvModule(CHANNELS, INNER), ConvModule(INNER, INNER))
        self.conv_cat = ConvModule(CHANNELS + INNER, OUTER)
        self.cca = Attention("{0}_conv", Scale())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.convs[1](self.cca(self.cca(self.convs[0](x))))
        return self.conv_seg(self.conv_cat(torch.cat([x, features], 1)))


class PaddleUnit(torch.nn.Module):
    def __init__(self, inputs: int, outputs: int, slope: float, bias: bool = False) -> None:
        super().__init__()
        self.slope = slope
        self._conv = convolve(inputs, outputs, bias)
        self._batch_norm = torch.nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.leaky_relu(self._batch_norm(self._conv(x)), self.slope)


class PaddleAux(torch.nn.Module):
    """The last two convolutions; the first of them has a bias that its norm takes away again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_bn_relu = PaddleUnit(CHANNELS + INNER, OUTER, 0.0, bias=True)
        self.conv = torch.nn.Conv2d(OUTER, CLASSES, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.conv_bn_relu(x))


class OfPaddleSeg(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conva = PaddleUnit(CHANNELS, INNER, 0.01)
        self.cca = Attention("{1}_conv")
        self.convb = PaddleUnit(INNER, INNER, 0.01)
        self.out = PaddleAux()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.convb(self.cca(self.cca(self.conva(x))))
        return self.out(torch.cat([x, features], 1))


def fill(module: torch.nn.Module) -> torch.nn.Module:
    """Draw all numbers, in float64: some weights of norms negative, all variances positive."""
    module = module.double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.copy_(drawn.abs() + 0.1 if "var" in name else drawn)
    return module


def read_state(module: torch.nn.Module, library: str) -> dict[str, np.ndarray]:
    """The state dict in NumPy, where it is of Paddle with the names that Paddle has for norms."""
    state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    if library != "paddleseg":
        return state
    for ours, theirs in (("running_mean", "_mean"), ("running_var", "_variance")):
        state = {name.replace(ours, theirs): array for name, array in state.items()}
    return {name: array for name, array in state.items() if "num_batches" not in name}


ORIGINALS = {
    "ccnet": (OfCCNet(), nn.from_ccnet, {}, "head."),
    "ccnet's first": (OfCCNet("conv1a", "pc", "conv1b"), nn.from_ccnet, {}, "head."),
    "mmseg": (OfMmseg(), nn.from_mmcv, {"activation": "relu"}, "decode_head."),
    "paddleseg": (OfPaddleSeg(), nn.from_paddleseg, {"last_activation": "relu"}, "head."),
}
for _module, *_ in ORIGINALS.values():
    fill(_module)
#: Names that these have in checkpoints, so that the modules above cannot stray from them.
NAMES = {
    "ccnet": "conva.0.weight conva.1.running_var cca.query_conv.weight cca.value_conv.bias"
    " cca.gamma convb.0.weight convb.1.bias bottleneck.0.weight bottleneck.1.weight"
    " bottleneck.3.bias",
    "ccnet's first": "conv1a.0.weight conv1a.1.running_mean pc.key_conv.bias pc.gamma"
    " conv1b.1.weight bottleneck.3.weight",
    "mmseg": "convs.0.conv.weight convs.0.bn.running_mean convs.1.bn.num_batches_tracked"
    " cca.query_conv.weight cca.gamma.scale conv_cat.conv.weight conv_cat.bn.weight"
    " conv_seg.weight conv_seg.bias",
    "paddleseg": "conva._conv.weight conva._batch_norm._mean convb._batch_norm._variance"
    " cca.q_conv.weight cca.v_conv.bias cca.gamma out.conv_bn_relu._conv.weight"
    " out.conv_bn_relu._conv.bias out.conv_bn_relu._batch_norm.bias out.conv.weight out.conv.bias",
}
X = np.random.default_rng(1).standard_normal((2, CHANNELS, 4, 5))


def run(module, x=X) -> np.ndarray:
    with torch.no_grad():
        return module(torch.from_numpy(x)).numpy()


@pytest.mark.parametrize("library", ORIGINALS)
def test_the_names_are_the_originals(library):
    assert set(NAMES[library].split()) <= set(read_state(ORIGINALS[library][0], library))


@pytest.mark.parametrize("around", ["nothing", "network", "parallel"])
@pytest.mark.parametrize("library", ORIGINALS)
def test_a_head_computes_what_the_original_does(library, around):
    """Taken out of the head itself, of a network, and of one that was trained in parallel."""
    module, convert, options, prefix = ORIGINALS[library]
    state = read_state(module, library)
    if around != "nothing":
        others = ["conv1.weight", "layer4.2.bn3.running_var", "dsn.0.weight", "dsn.3.bias"]
        others += [
            "backbone.stem.0.weight",
            "auxiliary_head.convs.0.conv.weight",
            "aux_head.conv.bias",
        ]
        state = {prefix + name: array for name, array in state.items()}
        state |= {name: np.ones(3) for name in others}
    if around == "parallel":
        state = {f"module.{name}": array for name, array in state.items()}
    before = {name: array.copy() for name, array in state.items()}
    parameters = convert(state)
    np.testing.assert_allclose(
        nn.rcca_head(parameters, X, **options), run(module), rtol=1e-10, atol=1e-12
    )
    if options:
        assert not np.allclose(nn.rcca_head(parameters, X), run(module))
    # What was given stays as it was.
    assert list(state) == list(before)
    assert all((state[name] == array).all() for name, array in before.items())


BLOCKS = {
    "ccnet": (Attention("{0}_conv"), nn.from_ccnet),
    "mmcv": (Attention("{0}_conv", Scale()), nn.from_mmcv),
    "paddleseg": (Attention("{1}_conv"), nn.from_paddleseg),
}


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("library", BLOCKS)
def test_a_block_computes_what_the_original_does(library, parallel):
    module, convert = BLOCKS[library]
    state = read_state(fill(module), library)
    if parallel:
        state = {f"module.{name}": array for name, array in state.items()}
    x = X[:, :INNER]
    out = nn.criss_cross_block(convert(state), x)
    np.testing.assert_allclose(out, run(module, x), rtol=1e-10, atol=1e-12)


def test_arrays_are_not_copied():
    """But for the weights of InPlaceABN's norms, of whatever library."""
    state = ORIGINALS["ccnet"][0].state_dict()
    for name, tensor in nn.from_ccnet(state, epsilon=0.5).items():
        if name.endswith(".1.weight"):
            assert torch.equal(tensor, state[name].abs() + 0.5)
        else:
            assert tensor is state[name]


@pytest.mark.parametrize("library", ORIGINALS)
def test_what_is_no_parameter_is_named(library):
    """All of it, by the names that it came with."""
    module, convert, _, prefix = ORIGINALS[library]
    state = {f"module.{prefix}{name}": x for name, x in read_state(module, library).items()}
    strange = [f"module.{prefix}{name}" for name in ("aspp.0.weight", "cca.query_conv.scale")]
    with pytest.raises(ArgumentError) as caught:
        convert({**state, **dict.fromkeys(strange, X)})
    assert caught.value.function == convert.__name__
    assert [str(mismatch) for mismatch in caught.value.mismatches] == [
        f"state: expected parameters of a block or a head, got {name!r}" for name in strange
    ]


@pytest.mark.parametrize("convert", [nn.from_ccnet, nn.from_mmcv, nn.from_paddleseg])
def test_a_state_without_a_head(convert):
    with pytest.raises(ArgumentError, match=r"^\w+: state: expected parameters .*, got none$"):
        convert({})
    with pytest.raises(ArgumentError, match=r"got 'backbone\.conv\.weight'"):
        convert({"backbone.conv.weight": X})


@pytest.mark.parametrize(
    ("convert", "name"),
    [
        (nn.from_ccnet, "head.conva.0.bias"),
        (nn.from_mmcv, "decode_head.convs.1.conv.bias"),
        (nn.from_paddleseg, "head.convb._conv.bias"),
        (nn.from_paddleseg, "head.out.conv_bn_relu._conv.bias"),
    ],
)
def test_a_bias_that_no_norm_takes_is_named(convert, name):
    """A head without norms is none that `rcca_head` computes."""
    with pytest.raises(ArgumentError, match=f"got '{name}'"):
        convert({name: X})
