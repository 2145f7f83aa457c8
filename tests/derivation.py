"""Vision Mamba written down a second time, from the paper and the published behaviour alone.

Slow, float64, on plain tensors under published key names; shares nothing with the package. Flips
are done on the sequence, as published; class tokens stay where they are.
"""

import torch
import torch.nn.functional as F


def selective_scan(u, dt, A, B, C, D):
    """One channel-last sequence (L, E), token by token."""
    state = torch.zeros_like(A)
    out = []
    for t in range(len(u)):
        state = torch.exp(dt[t, :, None] * A) * state + (dt[t] * u[t])[:, None] * B[t]
        out.append((state * C[t]).sum(dim=1) + D * u[t])
    return torch.stack(out)


def conv_silu(x, weight, bias):
    """Causal depthwise convolution of (L, E), weight (E, 1, W)."""
    width = weight.shape[-1]
    padded = torch.cat([x.new_zeros(width - 1, x.shape[1]), x])
    taps = [weight[:, 0, k] * padded[k : k + len(x)] for k in range(width)]
    out = sum(taps) + (0 if bias is None else bias)
    return out * torch.sigmoid(out)


def scan_branch(p, x, suffix='', log='A_log'):
    """Convolution, projections and scan of one direction: (L, E) -> (L, E)."""
    x = conv_silu(x, p[f'conv1d{suffix}.weight'], p.get(f'conv1d{suffix}.bias'))
    states = p[log].shape[1]
    rank = p[f'dt_proj{suffix}.weight'].shape[1]
    projected = x @ p[f'x_proj{suffix}.weight'].T
    dt, B, C = projected.split([rank, states, states], dim=1)
    dt = F.softplus(dt @ p[f'dt_proj{suffix}.weight'].T + p[f'dt_proj{suffix}.bias'])
    return selective_scan(x, dt, -torch.exp(p[log]), B, C, p['D' + suffix])


def mixer(p, tokens, direction, average=True):
    """Mixer of one sequence (L, D)."""
    xz = tokens @ p['in_proj.weight'].T + p.get('in_proj.bias', 0)
    x, z = xz.chunk(2, dim=1)
    gate = z * torch.sigmoid(z)
    y = scan_branch(p, x) * gate
    if direction == 'ssm':
        # The backward scan shares everything but A, the causal convolution included.
        u = conv_silu(x, p['conv1d.weight'], p.get('conv1d.bias'))
        states, rank = p['A_log'].shape[1], p['dt_proj.weight'].shape[1]
        dt, B, C = (u @ p['x_proj.weight'].T).split([rank, states, states], dim=1)
        dt = F.softplus(dt @ p['dt_proj.weight'].T + p['dt_proj.bias'])
        flipped = [tensor.flip(0) for tensor in (u, dt, B, C)]
        back = selective_scan(
            flipped[0], flipped[1], -torch.exp(p['A_b_log']), flipped[2], flipped[3], p['D']
        )
        y = y + back.flip(0) * gate
    elif direction == 'ssm_conv':
        back = scan_branch(p, x.flip(0), '_b', 'A_b_log').flip(0) * gate
        y = (y + back) / (2 if average else 1)
    out = y @ p['out_proj.weight'].T + p.get('out_proj.bias', 0)
    return out * p.get('gamma', 1)


def norm(x, weight, bias=None, eps=1e-5):
    """RMSNorm, or LayerNorm where there is a bias."""
    if bias is not None:
        x = x - x.mean(dim=-1, keepdim=True)
    x = x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + eps)
    return x * weight + (0 if bias is None else bias)


def rope(x, grid, patches):
    """Rotate the tokens at the indices ``patches`` of (L, D), pair by pair.

    Angles, sines and cosines are float32, as published; the rest is not.
    """
    half = x.shape[1] // 2
    single = torch.float32
    exponent = torch.arange(0, half, 2, dtype=single) / half
    frequency = 1 / torch.tensor(10000.0, dtype=single) ** exponent
    out = x.clone()
    for number, index in enumerate(patches):
        row, column = divmod(number, grid[1])
        angles = torch.cat(
            [
                torch.tensor(step, dtype=single) / n * 14 * frequency
                for step, n in ((row, grid[0]), (column, grid[1]))
            ]
        )
        for pair, angle in enumerate(angles):
            cos, sin = angle.cos().double(), angle.sin().double()
            first, second = x[index, 2 * pair], x[index, 2 * pair + 1]
            out[index, 2 * pair] = first * cos - second * sin
            out[index, 2 * pair + 1] = second * cos + first * sin
    return out


def vision_mamba(
    weights,
    tokens,
    depth,
    direction='ssm_conv',
    average=True,
    rope_mode='none',
    grid=None,
    patches=(),
):
    """Run the blocks on one sequence of tokens (L, D), position embedding added.

    Returns:
        Per block (per pair for 'block_published', under the index of its second block) the
        mixer's output and the stream before it was added.
    """

    def block(i, hidden, residual):
        residual = hidden if residual is None else residual + hidden
        key = f'layers.{i}.'
        p = {k.removeprefix(f'{key}mixer.'): v for k, v in weights.items() if k.startswith(key)}
        normed = norm(residual, weights[f'{key}norm.weight'], weights.get(f'{key}norm.bias'))
        kind = direction if direction in ('ssm', 'ssm_conv') else 'none'
        return mixer(p, normed, kind, average), residual

    taps = {}
    hidden, residual = tokens, None
    for i in range(0, depth, 2 if direction == 'block_published' else 1):
        if rope_mode != 'none':
            hidden = rope(hidden, grid, patches)
            if residual is not None and rope_mode == 'both':
                residual = rope(residual, grid, patches)
        if direction == 'block_published':
            flipped = None if residual is None else residual.flip(0)
            forward = block(i, hidden, residual)
            backward = block(i + 1, hidden.flip(0), flipped)
            hidden = forward[0] + backward[0].flip(0)
            residual = forward[1] + backward[1].flip(0)
            taps[i + 1] = hidden, residual
        elif direction == 'block' and i % 2:
            flipped = None if residual is None else residual.flip(0)
            hidden, residual = block(i, hidden.flip(0), flipped)
            hidden, residual = hidden.flip(0), residual.flip(0)
            taps[i] = hidden, residual
        else:
            hidden, residual = block(i, hidden, residual)
            taps[i] = hidden, residual
    return taps
