"""Published VMamba checkpoints: their keys and ours, both ways.

The published code exists twice, with other names: the models of its ``classification`` folder,
which were trained and which the dense code imports, and one file at its root. Both are read; the
first is written. A linear layer may be stored as a 1x1 convolution.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from mmengine.logging import MMLogger

from mmvim.checkpoints.architectures import refuse_foreign
from mmvim.checkpoints.comparing import load_and_compare
from mmvim.checkpoints.keys import BackboneWeights, Weights, split_backbone
from mmvim.errors import UserError
from mmvim.models import VMamba
from mmvim.models.pos_embed import stored_grid

# Keys that tell a published file, of today's names or the first release's, and one of ours.
PUBLISHED_MARKS = ('patch_embed.0.weight', 'patch_embed.proj.weight')
OURS_MARK = 'patch_embed.0.conv.weight'
MARKS = (*PUBLISHED_MARKS, OURS_MARK)
# The linear classifier: as published, and in mmpretrain's ImageClassifier with LinearClsHead.
HEADS = {
    'classifier.head.weight': 'head.fc.weight',
    'classifier.head.bias': 'head.fc.bias',
}
# Names of the first release and of the file at the root -> of today's ``classification``.
_OLD_NAMES = (
    (r'^patch_embed\.proj\.', 'patch_embed.0.'),
    (r'^patch_embed\.norm\.', 'patch_embed.2.'),
    (r'\.ln_1\.', '.norm.'),
    (r'\.self_attention\.', '.op.'),
    (r'^norm\.', 'classifier.norm.'),
    (r'^head\.', 'classifier.head.'),
    (r'\.op\.x_proj\.weight$', '.op.x_proj_weight'),
    (r'\.op\.dt_projs\.weight$', '.op.dt_projs_weight'),
)
_MERGING = (
    (r'\.downsample\.1\.', '.downsample.norm.'),
    (r'\.downsample\.2\.', '.downsample.reduction.'),
)
# Names of today's ``classification`` -> ours.
_OUR_NAMES = (
    ('patch_embed.0.', 'patch_embed.0.conv.'),
    ('patch_embed.2.', 'patch_embed.0.norm.'),
    ('patch_embed.5.', 'patch_embed.2.conv.'),
    ('patch_embed.7.', 'patch_embed.2.norm.'),
    ('.downsample.1.', '.downsample.conv.'),
    ('.downsample.3.', '.downsample.norm.'),
)
_LINEAR = re.compile(r'\.(in_proj|out_proj|fc1|fc2|reduction|head)\.weight$')
_STAGE = re.compile(r'^layers\.(\d+)\.')
_BLOCK_PART = r'blocks\.\d+\.(norm|norm2|op|mlp)\.'
_KNOWN = re.compile(rf'^(patch_embed\.\d\.|pos_embed$|layers\.\d+\.({_BLOCK_PART}|downsample\.))')
_BLOCK_NORM = re.compile(r'^layers\.(\d+)\.blocks\.\d+\.norm\.weight$')
_TAP_NORM = re.compile(r'^(outnorm|tap_norms\.)(\d+)\.')


def convert_vmamba(state_dict: Weights) -> BackboneWeights:
    """Give the backbone's state dict of a published VMamba checkpoint.

    Args:
        state_dict (Mapping[str, torch.Tensor]): The weights of a published classifier, or of a
            dense model, behind any prefix; or the whole checkpoint with the weights under
            ``'model'``.

    Returns:
        BackboneWeights: What ``load_state_dict`` of a :class:`mmvim.models.VMamba` takes: of a
        classifier with ``out_norm='last'``, whose norm is ``norm_f``; of a dense model with
        ``out_norm='all'``. The classifier's linear layer (``classifier.head.*``) and what else is
        no part of the backbone is kept apart in its ``extras``; so is the classifier's norm beside
        those of a dense model.

    Raises:
        UserError: If there are several models, or one of another architecture.
        ValueError: If a key is unknown or a tensor has a shape that none of the two codes has.
    """
    nested = state_dict.get('model')
    state_dict, rest = split_backbone(nested if isinstance(nested, Mapping) else state_dict, MARKS)
    refuse_foreign(state_dict, 'VMamba')
    state_dict = _todays_names(state_dict)
    taps = [int(found[2]) for key in state_dict if (found := _TAP_NORM.match(key))]
    weights: dict[str, torch.Tensor] = {}
    extras: dict[str, torch.Tensor] = {}
    unknown: list[str] = []
    for key, value in state_dict.items():
        tap = _TAP_NORM.match(key)
        if _LINEAR.search(key) and value.ndim == 4 and value.shape[2:] == (1, 1):
            value = value.flatten(1)
        if key.startswith('classifier.'):
            if key.startswith('classifier.norm.') and not taps:
                weights[key.replace('classifier.norm.', 'norm_f.')] = value
            else:
                extras[key] = value
        elif tap is not None:
            name = 'norm_f.' if int(tap[2]) == max(taps) else f'tap_norms.{tap[2]}.'
            weights[name + key[tap.end() :]] = value
        elif key == 'pos_embed' and value.ndim == 4:
            weights[key] = value.flatten(2).transpose(1, 2)
            weights['pos_embed_grid'] = torch.tensor(value.shape[2:])
        elif _KNOWN.match(key) and key != 'pos_embed':
            weights[_renamed(key, _OUR_NAMES)] = _in_four(key, value)
        else:
            unknown.append(key)
    if unknown:
        raise ValueError(
            f'{len(unknown)} keys do not belong to a published VMamba checkpoint: '
            f'{unknown[:5]}{" …" if len(unknown) > 5 else ""}. Expected patch_embed.*, '
            'layers.*.blocks.*, layers.*.downsample.*, outnorm* and classifier.*.'
        )
    return BackboneWeights(weights, extras | rest)


def to_vmamba(state_dict: Weights) -> dict[str, torch.Tensor]:
    """Give the published keys of a backbone's state dict: the way back.

    Args:
        state_dict (Mapping[str, torch.Tensor]): State dict of a :class:`mmvim.models.VMamba`,
            behind any prefix, or what :func:`convert_vmamba` returned, whose ``extras`` are put
            back.

    Returns:
        dict[str, torch.Tensor]: The weights under published keys: of a classifier, where there is
        one norm alone, or of a dense model.

    Raises:
        UserError: If there are several models, or one of another architecture.
        ValueError: If a key has no published name.
    """
    extras = getattr(state_dict, 'extras', {})
    state_dict, rest = split_backbone(state_dict, MARKS)
    refuse_foreign(state_dict, 'VMamba')
    deepest = max((int(found[1]) for key in state_dict if (found := _STAGE.match(key))), default=0)
    dense = any(key.startswith('tap_norms.') for key in state_dict)
    # Patch merging has its norm under the same name on both sides.
    merges = any('.downsample.reduction.' in key for key in state_dict)
    back = [(n, old) for old, n in _OUR_NAMES if not (merges and '.downsample.' in n)]
    last_norm = f'outnorm{deepest}.' if dense else 'classifier.norm.'
    weights: dict[str, torch.Tensor] = {}
    unknown = list(rest)
    for key, value in state_dict.items():
        tap = _TAP_NORM.match(key)
        if tap is not None:
            weights[f'outnorm{tap[2]}.{key[tap.end() :]}'] = value
        elif key.startswith('norm_f.'):
            weights[key.replace('norm_f.', last_norm)] = value
        elif key == 'pos_embed':
            grid = stored_grid(state_dict.get('pos_embed_grid'), value.shape[1])
            weights[key] = value.transpose(1, 2).unflatten(2, grid)
        elif _KNOWN.match(key):
            weights[_renamed(key, back)] = value
        elif key != 'pos_embed_grid':
            unknown.append(key)
    if unknown:
        raise ValueError(f'these keys have no published name: {unknown}.')
    return weights | extras


def our_part(
    weights: Weights, source: str, model: VMamba
) -> tuple[dict[str, torch.Tensor], Weights]:
    """The backbone under our keys, converted where they are published ones, and the rest.

    Args:
        weights (Mapping[str, torch.Tensor]): Of a backbone or of a whole model, behind any prefix.
        source (str): What to call the file in the message.
        model (VMamba): Whose deepest tap has the norm called ``norm_f``.

    Raises:
        UserError: If there is not one VMamba.
    """
    try:
        own, rest = split_backbone(weights, MARKS)
        refuse_foreign(own, 'VMamba')
        if OURS_MARK in own:
            return _of_taps(own, rest, model)
        if not own.keys() & {*PUBLISHED_MARKS}:
            raise UserError(
                f'no VMamba checkpoint: it has neither {PUBLISHED_MARKS[0]} (a published file) nor '
                f'{OURS_MARK} (one of ours), but {", ".join(list(own)[:3])} …'
            )
        converted = convert_vmamba(own)
    except (UserError, ValueError) as error:
        raise UserError(f'{source}: {error}') from error
    MMLogger.get_current_instance().info(f'{source}: converted from the published keys.')
    return _of_taps(converted, rest | converted.extras, model)


def _of_taps(own: Weights, rest: Weights, model: VMamba) -> tuple[dict[str, torch.Tensor], Weights]:
    """The norm of the model's deepest tap under its name; that of a deeper one goes to the rest."""
    deepest = f'tap_norms.{max(model.out_indices)}.'
    if not any(key.startswith(deepest) for key in own):
        return dict(own), rest
    deeper = {key: value for key, value in own.items() if key.startswith('norm_f.')}
    kept = {key.replace(deepest, 'norm_f.'): own[key] for key in own if key not in deeper}
    return kept, {**rest, **deeper}


def initial_keys(model: VMamba, weights: Weights, prefix: str = '') -> list[str]:
    """Norms of taps that start at 1 and 0, as published: a classifier has that of its last stage.

    Args:
        model (VMamba): Of the weights, with any taps.
        weights (Mapping[str, torch.Tensor]): Under our keys.
        prefix (str): What these begin with. Defaults to ''.
    """
    if any(key.startswith(f'{prefix}tap_norms.') for key in weights):
        return []
    names = (key.removeprefix(prefix) for key in weights)
    deepest = max((int(found[1]) for key in names if (found := _STAGE.match(key))), default=0)
    if not model.tap_norms and max(model.out_indices) == deepest:
        return []
    return [prefix + key for key in model.state_dict() if key.startswith(('tap_norms.', 'norm_f.'))]


def unused_keys(model: VMamba, weights: Weights, prefix: str = '') -> list[str]:
    """Keys of a VMamba's weights that a model has no use for, as it is built.

    Args:
        model (VMamba): Has no use for stages that it does not build, for norms of stages that it
            does not tap, and where :func:`initial_keys` are, for that of a classifier.
        weights (Mapping[str, torch.Tensor]): Under our keys.
        prefix (str): What these begin with. Defaults to ''.
    """
    norms = {key for key in model.state_dict() if key.startswith(('tap_norms.', 'norm_f.'))}
    norms -= {key.removeprefix(prefix) for key in initial_keys(model, weights, prefix)}
    return model.unbuilt_keys(weights, prefix) + [
        key
        for key in weights
        if key.startswith((f'{prefix}tap_norms.', f'{prefix}norm_f.'))
        and key.removeprefix(prefix) not in norms
    ]


def check_backbone(weights: Weights) -> VMamba:
    """Compare a state dict with the backbone that its own shapes describe.

    Args:
        weights (Mapping[str, torch.Tensor]): State dict of a :class:`mmvim.models.VMamba`.

    Returns:
        VMamba: That backbone, on the meta device.

    Raises:
        UserError: If tensors are missing, left over or of a shape that does not fit the others.
    """
    shapes = {key: value.to('meta') for key, value in weights.items() if key != 'pos_embed_grid'}
    try:
        with torch.device('meta'):
            model = VMamba(**_backbone_options(weights))
        if model.pos_embed_grid is not None:
            model.pos_embed_grid = torch.tensor(model.grid_size)
        said = str(load_and_compare(model, shapes))
    except ValueError as error:
        raise UserError(f'the backbone is not whole: {error}') from error
    except KeyError as error:
        raise UserError(f'the backbone is not whole: {error.args[0]} missing') from error
    except IndexError as error:
        raise UserError('the backbone is not whole: a tensor has too few axes') from error
    if said:
        raise UserError(f'the backbone is not whole: {said}')
    return model


def _backbone_options(weights: Weights) -> dict[str, Any]:
    """Arguments of the backbone that a state dict belongs to.

    Whether SiLU acts on a gate leaves no trace: it is given as 'silu', as of every released model.

    Raises:
        KeyError: If a tensor that tells is not there.
        IndexError: If it has too few axes.
    """
    blocks = Counter(found[1] for key in weights if (found := _BLOCK_NORM.match(key)))
    depths = [blocks[str(stage)] for stage in range(max(map(int, blocks), default=-1) + 1)]
    first = 'layers.0.blocks.0.'
    dims = [len(weights[f'layers.{i}.blocks.0.norm.weight']) for i in range(len(depths))]
    inner = len(weights[f'{first}op.Ds']) // 4
    conv, fc1 = weights.get(f'{first}op.conv2d.weight'), weights.get(f'{first}mlp.fc1.weight')
    patch = weights[OURS_MARK]
    patchify = 'patch_embed.2.conv.weight' not in weights
    patch_size = patch.shape[2] if patchify else 4
    down = weights.get('layers.0.downsample.conv.weight')
    rows = weights.get('pos_embed')
    grid = (56, 56) if rows is None else stored_grid(weights.get('pos_embed_grid'), rows.shape[1])
    taps = [int(found[2]) for key in weights if (found := _TAP_NORM.match(key))]
    return dict(
        arch=dict(
            dims=dims,
            depths=depths,
            d_state=weights[f'{first}op.A_logs'].shape[1],
            dt_rank=weights[f'{first}op.dt_projs_weight'].shape[2],
            ssm_ratio=inner / dims[0],
            conv_kernel=1 if conv is None else conv.shape[3],
            conv_bias=f'{first}op.conv2d.bias' in weights,
            gate='silu' if len(weights[f'{first}op.in_proj.weight']) > inner else 'none',
            mlp_ratio=0 if fc1 is None else len(fc1) / dims[0],
            patch_embed='patchify' if patchify else 'conv',
            downsample='merge' if down is None else f'conv{down.shape[3]}',
            pos_embed=rows is not None,
        ),
        img_size=tuple(cells * patch_size for cells in grid),
        patch_size=patch_size,
        in_channels=patch.shape[1],
        out_indices=sorted({*taps, len(depths) - 1}),
        out_norm='all' if taps else 'last' if 'norm_f.weight' in weights else 'none',
    )


def _renamed(key: str, names: Iterable[tuple[str, str]]) -> str:
    """A key with the first of the ``names`` that is in it replaced."""
    for old, new in names:
        if old in key:
            return key.replace(old, new)
    return key


def _todays_names(weights: Weights) -> dict[str, torch.Tensor]:
    """The weights under the keys that the ``classification`` folder has today."""
    # The file at the root has the two layers of patch merging in a sequence, where convolutional
    # downsampling has its convolution.
    merges = any(k.endswith('.downsample.1.weight') and v.ndim == 1 for k, v in weights.items())
    names = (*_OLD_NAMES, *(_MERGING if merges else ()))
    renamed = {}
    for key, value in weights.items():
        for pattern, name in names:
            key = re.sub(pattern, name, key)
        renamed[key] = value
    return renamed


def _in_four(key: str, value: torch.Tensor) -> torch.Tensor:
    """The projections of the four sequences side by side, as they are in ``classification``."""
    if not key.endswith(('.x_proj_weight', '.dt_projs_weight')) or value.ndim != 2:
        return value
    if len(value) % 4:
        raise ValueError(f'{key} of shape {tuple(value.shape)} holds no four projections.')
    return value.unflatten(0, (4, -1))
