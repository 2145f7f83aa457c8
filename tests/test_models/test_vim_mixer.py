"""The token mixer beside what its users put into it."""

import torch
from torch import nn

from mmvim.models.layers import VimMixer


class Adapter(nn.Module):
    """Adds to a projection, as low-rank adapters do; has its weight, as some of them do."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.added = nn.Linear(linear.in_features, linear.out_features, bias=False)

    @property
    def weight(self) -> torch.Tensor:
        return self.linear.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + self.added(x)


def test_what_takes_the_place_of_a_projection_is_called() -> None:
    """An adapter in place of x_proj, and hooks on it, take part, forwards and backwards."""
    torch.manual_seed(0)
    mixer, tokens = VimMixer(16, d_state=4).double(), torch.randn(2, 7, 16).double()
    plain = mixer(tokens)
    seen: list[tuple[int, ...]] = []
    handle = mixer.x_proj.register_forward_hook(lambda *args: seen.append(args[2].shape))
    assert torch.allclose(mixer(tokens), plain, rtol=0, atol=1e-12)
    assert seen == [(2, 7, mixer.dt_rank + 2 * 4)]
    handle.remove()
    mixer.x_proj_b = Adapter(mixer.x_proj_b).double()
    adapted = mixer(tokens)
    assert not torch.allclose(adapted, plain)
    adapted.sum().backward()
    assert mixer.x_proj_b.added.weight.grad.abs().sum() > 0
