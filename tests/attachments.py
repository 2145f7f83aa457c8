"""What torch and its users hang on the layers of a mixer, or put in their place."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

SHARED = ['in_proj', 'conv1d', 'x_proj', 'dt_proj', 'out_proj']
LAYERS = [*SHARED, 'conv1d_b', 'x_proj_b', 'dt_proj_b']


class Adapter(nn.Module):
    """Adds to a layer, as low-rank adapters do; has its weight, as some of them do."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.added = nn.Parameter(0.3 * torch.randn_like(layer.weight))

    @property
    def weight(self):
        return self.layer.weight

    def forward(self, x):
        if isinstance(self.layer, nn.Linear):
            return self.layer(x) + F.linear(x, self.added)
        return self.layer(x) + F.conv1d(x, self.added, groups=self.layer.groups)


class Wave(nn.Module):
    """A parametrisation."""

    def forward(self, weight):
        return weight + 0.1 * weight.sin()


def scaled(layer):
    """Another forward on the instance, as accelerate's offloading sets it."""
    call = layer.forward
    layer.forward = lambda x: 0.7 * call(x)


def replaced(mixer, name):
    setattr(mixer, name, Adapter(getattr(mixer, name)))


HUNG = {
    'forward hook': lambda layer: layer.register_forward_hook(lambda m, args, out: 1.5 * out),
    'forward pre-hook': lambda layer: layer.register_forward_pre_hook(
        lambda m, args: 0.5 * args[0]
    ),
    'hook with keywords': lambda layer: layer.register_forward_hook(
        lambda m, args, kwargs, out: out + 1, with_kwargs=True
    ),
    'backward hook': lambda layer: layer.register_full_backward_hook(
        lambda m, grads, outs: tuple(2 * grad for grad in grads)
    ),
    'backward pre-hook': lambda layer: layer.register_full_backward_pre_hook(
        lambda m, grads: tuple(2 * grad for grad in grads)
    ),
    'forward of the instance': scaled,
    'parametrisation': lambda layer: parametrize.register_parametrization(layer, 'weight', Wave()),
    'weight norm': weight_norm,
    'parametrised weight norm': parametrizations.weight_norm,
    'spectral norm': spectral_norm,
    'parametrised spectral norm': parametrizations.spectral_norm,
    'pruning': lambda layer: prune.l1_unstructured(layer, 'weight', amount=0.5),
}
ON_ANY = [kind for kind in HUNG if 'hook' in kind or 'forward' in kind]
