"""Key mapping between published Vim checkpoints and :class:`mmvim.models.VisionMamba`.

The published position embedding is one table with the class rows where the class tokens sit;
ours keeps patch rows and class rows apart. All other tensors are only renamed.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

# Class tokens -> their published keys, in the order of the sequence.
_CLS_KEYS: dict[str, tuple[str, ...]] = {
    'none': (),
    'head': ('cls_token',),
    'middle': ('cls_token',),
    'double': ('cls_token_head', 'cls_token_tail'),
}
CLS_TOKENS = tuple(_CLS_KEYS)
_ALL_CLS_KEYS = ('cls_token', 'cls_token_head', 'cls_token_tail')
# What a published file holds beside the backbone: classifier, dense pyramid, constant tables.
_EXTRA_PREFIXES = ('head.', 'fpn', 'rope.')
# Keys that tell a published file from one of ours.
PUBLISHED_MARK = 'patch_embed.proj.weight'
OURS_MARK = 'patch_embed.projection.weight'
_RENAMED = (('patch_embed.proj.', 'patch_embed.projection.'),)
_KEPT_PREFIXES = ('layers.', 'norm_f.')


class OfficialWeights(dict[str, torch.Tensor]):
    """The backbone's state dict, made from a published checkpoint.

    Attributes:
        extras (dict[str, torch.Tensor]): What the file held beside the backbone, under its
            published keys: ``head.*`` for a classifier, ``fpn*`` and ``rope.*``.
    """

    def __init__(
        self, weights: Mapping[str, torch.Tensor], extras: Mapping[str, torch.Tensor]
    ) -> None:
        super().__init__(weights)
        self.extras = dict(extras)


def _check_cls_token(cls_token: str) -> None:
    if cls_token not in _CLS_KEYS:
        raise ValueError(f'cls_token must be one of {tuple(_CLS_KEYS)}, got {cls_token!r}.')


def cls_rows(cls_token: str, num_patches: int) -> list[int]:
    """Rows of the class tokens in the published position embedding.

    Args:
        cls_token (str): As in :func:`convert_official`.
        num_patches (int): Number of the other rows.
    """
    return {
        'none': [],
        'head': [0],
        'middle': [num_patches // 2],
        'double': [0, num_patches + 1],
    }[cls_token]


def our_key(key: str) -> str | None:
    """Our name of a published key, None for what is no part of the backbone.

    The position embedding's class rows go to ``cls_pos_embed``, which no published key stands for.
    """
    if key in _ALL_CLS_KEYS:
        return 'cls_token'
    for old, new in _RENAMED:
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key if key == 'pos_embed' or key.startswith(_KEPT_PREFIXES) else None


def convert_official(
    state_dict: Mapping[str, torch.Tensor], cls_token: str = 'middle'
) -> OfficialWeights:
    """Give the backbone's state dict of a published checkpoint.

    Args:
        state_dict (Mapping[str, torch.Tensor]): The weights of a published checkpoint, or the
            whole checkpoint with the weights under ``'model'``.
        cls_token (str): Where that checkpoint has its class token: 'none', 'head', 'middle' or
            'double'. It is declared because the file does not tell 'head' from 'middle'; every
            released model is 'middle'. Defaults to 'middle'.

    Returns:
        OfficialWeights: A dict that ``load_state_dict(..., strict=True)`` takes; the classifier
        and what else is no part of the backbone is kept apart in its ``extras``.

    Raises:
        ValueError: If the class tokens are not those declared, or a key is unknown.
    """
    _check_cls_token(cls_token)
    nested = state_dict.get('model')
    if isinstance(nested, Mapping):
        state_dict = nested
    found = tuple(key for key in _ALL_CLS_KEYS if key in state_dict)
    if found != _CLS_KEYS[cls_token]:
        raise ValueError(
            f'the checkpoint has the class tokens {list(found)}, but cls_token={cls_token!r} '
            f'means {list(_CLS_KEYS[cls_token])}: declare the placement that it was trained with.'
        )
    weights: dict[str, torch.Tensor] = {}
    extras: dict[str, torch.Tensor] = {}
    unknown: list[str] = []
    if found:
        weights['cls_token'] = torch.cat([state_dict[key] for key in found], dim=1)
    for key, value in state_dict.items():
        if key in found:
            continue
        ours = our_key(key)
        if key == 'pos_embed':
            is_cls = torch.zeros(value.shape[1], dtype=torch.bool)
            is_cls[cls_rows(cls_token, value.shape[1] - len(found))] = True
            weights['pos_embed'] = value[:, ~is_cls]
            if found:
                weights['cls_pos_embed'] = value[:, is_cls]
        elif ours is not None:
            weights[ours] = value
        elif key.startswith(_EXTRA_PREFIXES):
            extras[key] = value
        else:
            unknown.append(key)
    if unknown:
        raise ValueError(
            f'{len(unknown)} keys do not belong to a published Vim checkpoint: '
            f'{unknown[:5]}{" …" if len(unknown) > 5 else ""}. Expected patch_embed.proj.*, '
            'layers.*, norm_f.*, cls_token*, pos_embed and head.*.'
        )
    return OfficialWeights(weights, extras)


def to_official(
    state_dict: Mapping[str, torch.Tensor],
    cls_token: str = 'middle',
    extras: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """Give the published keys of a backbone's state dict: the way back.

    Args:
        state_dict (Mapping[str, torch.Tensor]): State dict of a ``VisionMamba``, or what
            :func:`convert_official` returned.
        cls_token (str): The class-token placement of the model. Defaults to 'middle'.
        extras (Mapping[str, torch.Tensor], optional): Tensors to add under their published
            keys, such as ``head.weight``. Defaults to those of an :class:`OfficialWeights`.

    Returns:
        dict[str, torch.Tensor]: The weights under published keys.

    Raises:
        ValueError: If the class tokens are not those declared, or a key has no published name.
    """
    _check_cls_token(cls_token)
    keys = _CLS_KEYS[cls_token]
    tokens = state_dict.get('cls_token')
    count = 0 if tokens is None else tokens.shape[1]
    if count != len(keys):
        raise ValueError(
            f'the state dict has {count} class tokens, cls_token={cls_token!r} means {len(keys)}: '
            'declare the placement of this model.'
        )
    weights: dict[str, torch.Tensor] = {}
    unknown: list[str] = []
    for key, value in state_dict.items():
        renamed = next((old + key[len(new) :] for old, new in _RENAMED if key.startswith(new)), '')
        if key == 'cls_token':
            for i, name in enumerate(keys):
                weights[name] = value[:, i : i + 1]
        elif key == 'pos_embed':
            weights['pos_embed'] = _merge_pos_embed(
                value, state_dict.get('cls_pos_embed'), cls_token
            )
        elif renamed:
            weights[renamed] = value
        elif key.startswith(_KEPT_PREFIXES):
            weights[key] = value
        elif key not in ('cls_pos_embed', 'pos_embed_grid'):
            unknown.append(key)
    if unknown:
        raise ValueError(f'these keys have no published name: {unknown}.')
    if extras is None:
        extras = state_dict.extras if isinstance(state_dict, OfficialWeights) else {}
    weights.update(extras)
    return weights


def _merge_pos_embed(
    patch_rows: torch.Tensor, class_rows: torch.Tensor | None, cls_token: str
) -> torch.Tensor:
    """Put class rows (1, n, D) among patch rows (1, M, D) where the class tokens sit."""
    if class_rows is None:
        return patch_rows
    num_patches = patch_rows.shape[1]
    merged = patch_rows.new_empty(1, num_patches + class_rows.shape[1], patch_rows.shape[2])
    is_cls = torch.zeros(merged.shape[1], dtype=torch.bool)
    is_cls[cls_rows(cls_token, num_patches)] = True
    merged[:, is_cls] = class_rows
    merged[:, ~is_cls] = patch_rows
    return merged
