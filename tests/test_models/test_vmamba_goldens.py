"""VMamba against what the published code computes."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from mmvim.checkpoints import convert_vmamba, to_vmamba
from mmvim.models import VMamba
from mmvim_ops import available_backends

pytestmark = pytest.mark.stack
SIZES = dict(dims=12, depths=(1, 1, 2, 1))
VARIANTS = dict(v05=SIZES, v0=VMamba.arch_zoo['v0_tiny'] | SIZES)
EXACT = ['chunked', 'reference']
RELEASED = [name for name in VMamba.arch_zoo if name != 'nano']
DENSE = dict()
CLASSIFIER = dict(out_indices=3, out_norm='last', out_type='avg_featmap')


def load_golden(goldens, name):
    with np.load(goldens / 'vmamba' / f'{name}.npz') as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def build(goldens, name, options, dtype=torch.float64, backend='chunked'):
    """A model with the published weights, and its classifier."""
    weights = load_file(goldens / 'vmamba' / f'{name}.weights.safetensors')
    if options is CLASSIFIER:
        weights = {key: value for key, value in weights.items() if 'outnorm' not in key}
    model = VMamba(VARIANTS[name], scan_backend=backend, **options)
    converted = convert_vmamba(weights)
    model.load_state_dict(converted, strict=True)
    head = [converted.extras[f'classifier.head.{part}'] for part in ('weight', 'bias')]
    return model.to(dtype).eval(), [tensor.to(dtype) for tensor in head]


@pytest.mark.parametrize('size', ['64x64', '72x56'])  # the second has odd maps: 9x7, 5x4
@pytest.mark.parametrize('backend', EXACT)
@pytest.mark.parametrize('name', VARIANTS)
def test_dense_forward(goldens, name, backend, size):
    golden = load_golden(goldens, name)
    model, _ = build(goldens, name, DENSE, backend=backend)
    with torch.no_grad():
        outs = model(golden[f'{size}.input'].double())
    for i, out in enumerate(outs):
        torch.testing.assert_close(out, golden[f'{size}.out{i}'], rtol=0, atol=1e-10)


@pytest.mark.parametrize('size', ['64x64', '72x56'])
@pytest.mark.parametrize('name', VARIANTS)
def test_classifier_forward(goldens, name, size):
    golden = load_golden(goldens, name)
    model, head = build(goldens, name, CLASSIFIER)
    with torch.no_grad():
        (features,) = model(golden[f'{size}.input'].double())
    logits = F.linear(features, *head)
    torch.testing.assert_close(logits, golden[f'{size}.logits'], rtol=0, atol=1e-10)


@pytest.mark.parametrize('backend', ['auto', 'cpu', *EXACT])
@pytest.mark.parametrize('name', VARIANTS)
def test_float32_forward(goldens, name, backend):
    if backend == 'cpu' and not available_backends()['cpu'].available:
        pytest.skip(available_backends()['cpu'].note)
    golden = load_golden(goldens, name)
    model, _ = build(goldens, name, DENSE, torch.float32, backend)
    with torch.no_grad():
        outs = model(golden['72x56.input'])
    for i, out in enumerate(outs):
        expected = golden[f'72x56.out{i}']
        torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize('name', VARIANTS)
def test_every_step_of_a_block(goldens, name):
    golden = load_golden(goldens, name)
    model, _ = build(goldens, name, dict(out_norm='all'))
    model.tap_norms, model.norm_f, model.out_norm = torch.nn.ModuleDict(), torch.nn.Identity(), ''
    seen = {}

    def keep(key, module):
        def hook(module, args, out):
            seen[key], seen[f'{key}_in'] = out, args[0]

        module.register_forward_hook(hook)

    block = model.layers[1]['blocks'][0]
    keep('patch_embed', model.patch_embed)
    for i, stage in enumerate(model.layers):
        keep(f'stage{i}', stage['blocks'][-1])
    keep('block.block_out', block)
    keep('block.ss2d_out', block.op)
    keep('block.normed', block.op.out_norm)
    with torch.no_grad():
        model(golden['72x56.input'].double())
    pairs = {
        'block.block_in': seen['block.block_out_in'],
        'block.ss2d_in': seen['block.ss2d_out_in'],
        'block.merged': seen['block.normed_in'],
    }
    compared = 0
    for key, value in (seen | pairs).items():
        if f'72x56.{key}' in golden:
            expected = golden[f'72x56.{key}']
            found = value.permute(0, 3, 1, 2)[: len(expected)]  # of a block one image alone
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-10, msg=key)
            compared += 1
    assert compared == 11


@pytest.mark.parametrize('backend, dtype', [*((b, torch.float64) for b in EXACT), ('auto', None)])
def test_gradients(goldens, backend, dtype):
    golden, grads = load_golden(goldens, 'v05'), load_golden(goldens, 'v05.grads_f32')
    dtype, tolerance = (torch.float32, 1e-4) if dtype is None else (dtype, 1e-6)
    model, head = build(goldens, 'v05', CLASSIFIER, dtype, backend)
    head = [tensor.requires_grad_() for tensor in head]
    image = golden['64x64.input'].to(dtype).requires_grad_()
    (features,) = model(image)
    loss = (F.linear(features, *head) * golden['64x64.loss_weight'].to(dtype)).sum()
    loss.backward()
    found = to_vmamba({name: param.grad for name, param in model.named_parameters()})
    found |= {'classifier.head.weight': head[0].grad, 'classifier.head.bias': head[1].grad}
    found['input'] = image.grad
    assert found.keys() == grads.keys()
    for key, expected in grads.items():
        error = (found[key] - expected).abs().max() / expected.abs().max()
        assert error <= tolerance, (key, error)


@pytest.mark.parametrize('name', RELEASED)
def test_published_key_tables_and_counts(goldens, name):
    """Of the dense model and the classifier: every key has a place, and none is left over."""
    folder = goldens / 'vmamba'
    table = json.loads((folder / f'statedict_vmamba_{name}.json').read_text())
    count = json.loads((folder / 'param_counts.json').read_text())[f'vmamba_{name}']
    classifier = table['keys']
    dense = {k: v for k, v in classifier.items() if k not in table['classifier_only']}
    dense |= table['dense_only']
    for shapes, options, params in (
        (classifier, CLASSIFIER, count['n_params_classifier']),
        (dense, DENSE, count['n_params_dense']),
    ):
        with torch.device('meta'):
            model = VMamba(name, **options)
            converted = convert_vmamba({key: torch.empty(shape) for key, shape in shapes.items()})
        ours = {key: param.shape for key, param in model.named_parameters()}
        assert {key: value.shape for key, value in converted.items()} == ours
        rest = converted.extras.values()
        assert sum(value.numel() for value in (*converted.values(), *rest)) == params
        assert set(converted.extras) == {k for k in shapes if k.startswith('classifier.head.')}
        back = to_vmamba(converted)
        assert {key: list(value.shape) for key, value in back.items()} == shapes


def test_initialisation_is_the_published_one(goldens):
    """Mean, spread and range of each parameter."""
    file = goldens / 'vmamba' / 'init_stats_vmamba_tiny_s1l8.json'
    table = json.loads(file.read_text())['params']
    torch.manual_seed(0)
    ours = to_vmamba(VMamba('tiny_s1l8', **CLASSIFIER).state_dict())
    assert {key for key in table if not key.startswith('classifier.head.')} == ours.keys()
    for key, value in ours.items():
        stats, value = table[key], value.double()
        assert list(value.shape) == stats['shape']
        if stats['std'] == 0:
            assert value.std() == 0 and value.mean().item() == pytest.approx(stats['mean'])
            continue
        # Two independent draws: standard errors of mean and spread, at five sigma.
        sigma, n = stats['std'], value.numel()
        assert value.mean().item() == pytest.approx(stats['mean'], abs=7 * sigma / n**0.5), key
        assert value.std().item() == pytest.approx(sigma, rel=10 / n**0.5), key
        assert value.min().item() >= stats['min'] - 1.5 * sigma, key
        assert value.max().item() <= stats['max'] + 1.5 * sigma, key
