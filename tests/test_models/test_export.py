"""The backbone as a graph: torch.export, torch.jit.trace, and ONNX through the reference scan."""

import numpy as np
import pytest
import torch

from mmvim.models import VisionMamba, VMamba
from mmvim_ops import loading
from mmvim_ops.backends import select


def build(**options):
    torch.manual_seed(0)
    if 'arch' in options:
        return VMamba(out_indices=(0, 1), **options).eval()
    return VisionMamba(
        dict(embed_dims=16, num_layers=2, d_state=4),
        img_size=16,
        patch_size=8,
        out_indices=(0, 1),
        **options,
    ).eval()


@pytest.mark.parametrize('direction', ['none', 'ssm_conv'])
def test_torch_export_at_a_fixed_size(direction):
    model, x = build(direction=direction), torch.randn(2, 3, 16, 24)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x))


ANY_SIZE = {2: torch.export.Dim('height', min=9), 3: torch.export.Dim('width', min=9)}


@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(scan_backend='chunked', cls_token='none'),
        dict(direction='block', cls_token='double', rope='both', pos_embed=False),
    ],
)
def test_one_exported_graph_for_any_size(options):
    """Traced at the size of the stored position embedding, which must not be taken for all."""
    model = build(**options)
    example = torch.randn(2, 3, 16, 16)
    program = torch.export.export(model, (example,), dynamic_shapes=(ANY_SIZE,))
    for size in ((16, 16), (9, 47), (33, 24), (80, 72)):  # up to 90 tokens: more than one chunk
        x = torch.randn(2, 3, *size)
        torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=1e-6)


def test_the_reference_scan_has_no_graph_for_any_size():
    model, x = build(scan_backend='reference'), torch.randn(2, 3, 16, 24)
    with pytest.raises(RuntimeError, match=r"'reference' takes token after token.*dynamic_shapes"):
        torch.export.export(model, (x,), dynamic_shapes=(ANY_SIZE,))


VMAMBAS = [
    dict(arch=form | dict(dims=8, depths=(1, 1), d_state=2))
    for form in ({}, VMamba.arch_zoo['v0_tiny'])
]


@pytest.mark.parametrize('grad', [False, True])
@pytest.mark.parametrize('options', [dict(direction='none'), dict(direction='ssm_conv'), *VMAMBAS])
@pytest.mark.parametrize('backend', ['auto', 'chunked', 'reference'])
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
def test_jit_trace(backend, options, grad):
    """It runs the traced module once more, without gradients, and compares."""
    model, x = build(scan_backend=backend, **options), torch.randn(2, 3, 16, 24)
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(model, (x,))
    x = torch.randn(2, 3, 16, 24)
    results = []
    for function in (traced, model):
        model.zero_grad()
        taps = function(x)
        sum((tap * tap.detach().cos()).sum() for tap in taps).backward()
        results.append([*taps, *(param.grad for param in model.parameters())])
    torch.testing.assert_close(results[0], results[1])


@torch.no_grad()
@pytest.mark.skipif(loading.problem() is not None, reason=f'no native library: {loading.problem()}')
def test_operators_stay_whole_in_an_exported_graph():
    torch.manual_seed(0)
    model, x = VisionMamba('nano', img_size=32).eval(), torch.randn(2, 3, 32, 32)
    program = torch.export.export(model, (x,))
    # The regions without autocast are graphs of their own.
    modules = program.graph_module.modules()
    graphs = [module.graph for module in modules if isinstance(module, torch.fx.GraphModule)]
    called = [str(node.target) for graph in graphs for node in graph.nodes]
    for name in ('bidirectional_selective_scan', 'bi_conv1d_silu'):
        assert called.count(f'mmvim.{name}.default') == len(model.layers)
    assert not [name for name in called if name.startswith('mmvim.chunked')]
    # Beside the graph, blocks run as one operator each.
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    'options',
    [
        dict(cls_token='none', scan_backend='reference'),
        dict(cls_token='middle'),  # 'auto' takes what ONNX has operators of
        *VMAMBAS,
    ],
)
def test_onnx_export(options, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    model = build(**options)
    x = torch.randn(2, 3, 12, 9 if 'arch' in options else 24)
    file = str(tmp_path / 'model.onnx')
    torch.onnx.export(model, (x,), file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for tap, expected in zip(found, model(x), strict=True):
        np.testing.assert_allclose(tap, expected.detach().numpy(), rtol=1e-5, atol=1e-5)


def test_a_backend_asked_for_by_name_is_not_replaced_for_onnx(monkeypatch):
    monkeypatch.setattr(torch.onnx, 'is_in_onnx_export', lambda: True)
    call = torch.device('cpu'), torch.float32
    assert select('auto', *call).name == 'reference'
    assert select('chunked', *call).name == 'chunked'
