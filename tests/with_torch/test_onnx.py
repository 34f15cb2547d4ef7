"""Modules as graphs, compiled, exported and in ONNX Runtime: one for all sizes."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import onnxruntime
import pytest
import torch

from crisscross import nn
from crisscross.torch import RCCA
from tests.with_torch.test_modules import CASES, FEW, assert_close, draw, draw_tensor, fill

DIM = torch.export.Dim.DYNAMIC

# PyTorch's

SIZES = ((2, 5, 4), (3, 2, 7))


@pytest.mark.parametrize("name", FEW)
def test_compiled(name, device):
    """One graph for all sizes; outputs and gradients are those of eager calls."""
    case = CASES[name]
    module = fill(case.make(), device=device).train()
    eager = copy.deepcopy(module)
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for number, (n, *spatial) in enumerate(SIZES):
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            (x,) = draw((n, case.shape[1], *spatial))
            results = []
            for each in (compiled, eager):
                each.zero_grad()
                tensor = torch.from_numpy(x).to(device).requires_grad_()
                out = each(tensor)
                out.sin().sum().backward()
                gradients = [tensor.grad, *(p.grad for p in each.parameters())]
                results.append([out.detach(), *gradients])
        for one, other in zip(*results, strict=True):
            assert_close(one, other)
    for one, other in zip(module.buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FEW)
def test_exported(name, device):
    """A program for all sizes; its state dict has the names of the module."""
    case = CASES[name]
    module = fill(case.make(), device=device)
    x = draw_tensor((SIZES[0][0], case.shape[1], *SIZES[0][1:]), device)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: DIM, 2: DIM, 3: DIM},))
    assert program.state_dict.keys() == module.state_dict().keys()
    for n, *spatial in SIZES:
        x = draw_tensor((n, case.shape[1], *spatial), device)
        assert_close(program.module()(x), module(x))


# ONNX


#: Of the domain that every ONNX runtime knows; what was found where the tests were last run.
OPSET = 20
#: None has the sizes that the export is shown; one row, one column and one image are among them.
OTHER_SIZES = ((3, 7, 4), (1, 2, 9), (2, 1, 6), (2, 5, 1))
NAMES = ("criss-cross, columns", "non-local", "non-local, dot product", "position", "channel")


def export(module, *tensors, names=("x",)):
    """Export with all sizes but those of channels dynamic."""
    shapes = [
        {axis: DIM for axis in range(x.ndim) if axis != 1 or x.dtype is torch.bool} for x in tensors
    ]
    with warnings.catch_warnings():
        # PyTorch's own, of its own: in copying the tree of arguments.
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
        return torch.onnx.export(
            module,
            tuple(tensors),
            input_names=list(names),
            output_names=["out"],
            dynamic_shapes=tuple(shapes),
            dynamo=True,
            verbose=False,
        )


def assert_plain(model):
    """Nothing but the standard's operators, and no diagonal."""
    used = {(node.domain, node.op_type) for node in model.graph.node}
    assert {domain for domain, _ in used} == {""}
    assert not {kind for _, kind in used} & {"EyeLike", "Trilu", "Loop", "If", "Scan"}
    assert not model.functions
    assert [(each.domain, each.version) for each in model.opset_import] == [("", OPSET)]
    for value in (*model.graph.input, *model.graph.output):
        channels = None if value.name == "key_mask" else 1
        sizes = value.type.tensor_type.shape.dim
        is_free = [size.HasField("dim_param") for size in sizes]
        assert is_free == [number != channels for number in range(len(sizes))]


def start(program):
    model = program.model_proto
    assert_plain(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def assert_runs(session, module, *tensors):
    feeds = dict(
        zip((each.name for each in session.get_inputs()), map(torch.Tensor.numpy, tensors),
            strict=True)
    )  # fmt: skip
    (out,) = session.run(["out"], feeds)
    with torch.no_grad():
        expected = module(*tensors).numpy()
    assert out.dtype == expected.dtype
    bound = 1e-5 * max(1.0, abs(expected).max())
    np.testing.assert_allclose(out, expected, rtol=0, atol=bound)


def draw_floats(*shape):
    return draw_tensor(shape, "cpu").float()


@pytest.mark.parametrize("name", NAMES)
def test_a_module_runs_at_every_size(name):
    case = CASES[name]
    module = fill(case.make()).float()
    session = start(export(module, draw_floats(2, case.shape[1], 4, 5)))
    for n, *spatial in OTHER_SIZES:
        assert_runs(session, module, draw_floats(n, case.shape[1], *spatial))


def test_three_spatial_axes():
    module = fill(CASES["criss-cross, 3-D"].make()).float()
    session = start(export(module, draw_floats(2, 8, 4, 5, 3)))
    for shape in ((3, 8, 7, 4, 2), (1, 8, 2, 1, 5)):
        assert_runs(session, module, draw_floats(*shape))


def test_a_mask():
    """As a second input; whoever sees no key becomes what x is."""
    module = fill(CASES["criss-cross, heads"].make()).float()
    masks = [torch.from_numpy(np.random.default_rng(2).random((2, 4, 5)) < 0.6)]
    session = start(export(module, draw_floats(2, 8, 4, 5), *masks, names=("x", "key_mask")))
    for n, *spatial in OTHER_SIZES:
        mask = np.random.default_rng(n).random((n, *spatial)) < 0.3
        assert_runs(session, module, draw_floats(n, 8, *spatial), torch.from_numpy(mask))
    nothing = torch.zeros(1, 3, 4, dtype=torch.bool)
    x = draw_floats(1, 8, 3, 4)
    assert_runs(session, module, x, nothing)
    (out,) = session.run(["out"], {"x": x.numpy(), "key_mask": nothing.numpy()})
    np.testing.assert_array_equal(out, x.numpy())


def test_a_head_from_a_checkpoint(tmp_path):
    """Of CCNet, into a file, by the names of its state dict; the module stays what it was."""
    state = fill(RCCA(8, 6, 3, inner=4), seed=5).float().state_dict()
    state = {name: x for name, x in state.items() if "num_batches" not in name}
    module = RCCA(8, 6, 3, inner=4)
    module.load_state_dict(nn.from_ccnet(state), strict=True)
    module.eval()
    before = {name: x.clone() for name, x in module.state_dict().items()}
    program, path = export(module, draw_floats(2, 8, 4, 5)), tmp_path / "head.onnx"
    assert_plain(program.model_proto)
    program.save(path)
    kept = {each.name for each in program.model_proto.graph.initializer}
    assert {"cca.query_conv.weight", "cca.gamma", "bottleneck.3.weight"} <= kept
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for n, *spatial in OTHER_SIZES:
        assert_runs(session, module, draw_floats(n, 8, *spatial))
    assert not module.training
    assert all(torch.equal(x, before[name]) for name, x in module.state_dict().items())
    module(draw_floats(2, 8, 4, 5)).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
