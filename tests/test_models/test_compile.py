"""The whole backbone under torch.compile: one graph, the operators in it, the same results."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from mmvim.models import VisionMamba, VMamba


def build(direction):
    torch.manual_seed(0)
    arch = dict(embed_dims=32, num_layers=2, d_state=8)
    return VisionMamba(arch, img_size=32, out_indices=(0, 1), direction=direction)


def run(model, function, x):
    """The taps and the gradients of all parameters and of the image."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    taps = function(x)
    # Not of the squares: their sum is next to constant behind a norm.
    generator = torch.Generator().manual_seed(2)
    sum((tap * torch.randn(tap.shape, generator=generator)).sum() for tap in taps).backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return taps, grads | {'image': x.grad}


def assert_same(found, expected):
    for tap, wanted in zip(found[0], expected[0]):
        torch.testing.assert_close(tap, wanted, rtol=1e-5, atol=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, grad in expected[1].items():
        largest = float(grad.abs().max())
        torch.testing.assert_close(found[1][name], grad, rtol=0, atol=1e-4 * largest, msg=name)


SLOW = [
    ('ssm_conv', 'inductor'),
    ('none', 'aot_eager'),
    ('block', 'aot_eager'),
    ('ssm', 'aot_eager'),
]


@pytest.mark.parametrize(
    ('direction', 'compiler'),
    [('ssm_conv', 'aot_eager'), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_fullgraph(direction, compiler):
    """Forward and backward."""
    torch._dynamo.reset()
    model, x = build(direction), torch.randn(2, 3, 32, 48)
    compiled = torch.compile(model, fullgraph=True, backend=compiler)
    assert_same(run(model, compiled, x), run(model, model, x))


@torch.no_grad()
def test_one_graph_of_symbolic_sizes_in_evaluation():
    """Also where a size is the one that the position embedding is stored for."""
    torch._dynamo.reset()
    model, counter = build('ssm_conv').eval(), CompileCounter()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    for size in ((48, 112), (32, 32), (33, 71), (160, 176)):
        x = torch.randn(2, 3, *size)
        torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=1e-5)
    assert counter.frame_count == 1


@pytest.mark.slow
@pytest.mark.parametrize('dynamic', [None, True])
def test_fullgraph_of_symbolic_sizes(dynamic):
    """In training; by default the second size that a model meets is compiled for all sizes."""
    torch._dynamo.reset()
    model = build('ssm_conv')
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend='aot_eager')
    for size in ((32, 48), (64, 80), (48, 112)):
        x = torch.randn(2, 3, *size)
        assert_same(run(model, compiled, x), run(model, model, x))


VMAMBA = dict(dims=8, depths=(1, 1), d_state=2)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize('form', [{}, VMamba.arch_zoo['v0_tiny']])
def test_one_graph_of_vmamba_for_any_size_in_evaluation(form):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, counter = VMamba(form | VMAMBA, out_indices=(0, 1)).eval(), CompileCounter()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    for size in ((32, 48), (45, 67), (64, 64)):
        x = torch.randn(2, 3, *size)
        torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=1e-5)
    assert counter.frame_count == 1


@pytest.mark.slow
def test_vmamba_of_symbolic_sizes():
    """In training, on maps of even and odd sides."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = VMamba(VMAMBA, out_indices=(0, 1))
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend='aot_eager')
    for size in ((32, 48), (45, 67)):
        x = torch.randn(2, 3, *size)
        assert_same(run(model, compiled, x), run(model, model, x))


@pytest.mark.slow
def test_training_on_padded_images_of_symbolic_sizes():
    """The kernels that inductor writes meet the strides of an image that was padded."""
    torch._dynamo.reset()
    model = VisionMamba(dict(embed_dims=8, num_layers=1, d_state=2), img_size=32, cls_token='none')
    compiled = torch.compile(model, dynamic=True, backend='inductor')
    x = torch.randn(2, 3, 47, 72)
    assert_same(run(model, compiled, x), run(model, model, x))


@pytest.mark.slow
def test_fullgraph_under_autocast():
    torch._dynamo.reset()
    model = build('ssm_conv')
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    x = torch.randn(2, 3, 32, 48)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found, expected = run(model, compiled, x), run(model, model, x)
    for tap, wanted in zip(found[0], expected[0]):
        assert tap.dtype == wanted.dtype
        assert (tap - wanted).norm() <= 2e-2 * wanted.norm()
    assert all(grad.isfinite().all() for grad in found[1].values())
