"""Start a backbone from a published or converted checkpoint, strictly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.logging import MMLogger

from mmvim.checkpoints.comparing import origins
from mmvim.checkpoints.families import VIM, VMAMBA, Family
from mmvim.checkpoints.keys import by_module
from mmvim.checkpoints.patch_embed import PATCH_EMBEDS, fit_patch_embed
from mmvim.checkpoints.reading import read_weights
from mmvim.checkpoints.strict import load_strictly
from mmvim.checkpoints.vim import our_part
from mmvim.errors import UserError
from mmvim.models.arguments import check_choice
from mmvim.models.backbones.base_backbone import BaseBackbone
from mmvim.registry import WEIGHT_INITIALIZERS


class _Pretrained:
    """What the initialisers of all families do; see theirs."""

    family: Family

    def __init__(
        self,
        checkpoint: str,
        allow_missing: Sequence[str] = (),
        allow_unexpected: Sequence[str] = (),
        patch_embed: str | None = None,
    ) -> None:
        if patch_embed is not None:
            check_choice('patch_embed', patch_embed, PATCH_EMBEDS)
        self.checkpoint = str(checkpoint)
        self.allow_missing = tuple(allow_missing)
        self.allow_unexpected = tuple(allow_unexpected)
        self.patch_embed = patch_embed

    def _our_part(
        self, file: Mapping[str, torch.Tensor], module: Any
    ) -> tuple[dict[str, torch.Tensor], Mapping[str, torch.Tensor]]:
        """The backbone under our keys, and the rest of the file."""
        return self.family.our_part(file, self.checkpoint, module, None)

    def __call__(self, module: BaseBackbone) -> None:
        """Load the checkpoint into ``module``."""
        if not isinstance(module, self.family.kind):
            raise UserError(
                f'{self.checkpoint}: mmvim.{type(self).__name__} starts a '
                f'{self.family.kind.__name__}, not a {type(module).__name__}'
            )
        file = read_weights(self.checkpoint)
        weights, rest = self._our_part(file, module)
        made_of = self.family.made_of
        named = {key: ', '.join(keys) for key, keys in origins(file, weights, made_of).items()}
        unused = self.family.unused_keys(module, weights, '')
        unused += [key for key in weights if key in self.allow_unexpected and key not in unused]
        own = module.state_dict()
        initial = [key for key in self.allow_missing if key in own and key not in weights]
        initial += self.family.initial_keys(module, weights, '')
        adapted = self._fit_patch_embed(weights, own)
        if adapted == 'skip':
            initial += [key for key in own if key.startswith('patch_embed.')]
            unused += [key for key in weights if key.startswith('patch_embed.')]
        elif adapted:
            named[self.family.patch_embed] += f': {adapted}'
        kept = {key: value for key, value in weights.items() if key not in unused}
        state = kept | {key: own[key] for key in initial}
        load_strictly(module, {'state_dict': state}, self.checkpoint)
        self._note(module, kept, named)
        logger = MMLogger.get_current_instance()
        logger.info(f'Loaded {len(kept)} tensors from {self.checkpoint}.')
        for what, keys in (
            ('no part of the backbone', rest),
            ('not used by this backbone', unused),
            ('kept at their initial values', initial),
        ):
            if keys:
                logger.info(f'{self.checkpoint}: {what}: {", ".join(by_module(keys))}.')

    def _fit_patch_embed(
        self, weights: dict[str, torch.Tensor], own: Mapping[str, torch.Tensor]
    ) -> str:
        """Adapt the patch embedding where it has to be; what was done, for the log."""
        mark = self.family.patch_embed
        kernel, wanted = weights.get(mark), own[mark].shape
        # What is no patch embedding at all is a misfit like any other.
        if kernel is None or kernel.ndim != 4 or not kernel.numel():
            return ''
        if kernel.shape[1:] == wanted[1:]:
            return ''
        if self.patch_embed is None:
            raise UserError(
                f'{self.checkpoint} has a patch embedding for {kernel.shape[1]} channels and '
                f'patches of {tuple(kernel.shape[2:])}, the model for {wanted[1]} and '
                f"{tuple(wanted[2:])}: patch_embed='mean' or 'repeat' adapts it to channels and "
                "patch size, 'skip' leaves the model's as it is drawn"
            )
        if self.patch_embed == 'skip':
            return 'skip'
        weights[mark], said = fit_patch_embed(kernel, wanted, self.patch_embed)
        MMLogger.get_current_instance().info(f'{self.checkpoint}: {mark}: {said}.')
        return said

    def _note(
        self, module: BaseBackbone, kept: Mapping[str, torch.Tensor], named: Mapping[str, str]
    ) -> None:
        """Say in mmengine's log of the initialisation where each parameter came from."""
        info: dict[Any, Any] = getattr(module, '_params_init_info', {})
        for name, param in module.named_parameters():
            said = 'drawn: not taken from the file'
            if name in kept:
                said = named[name]
                if kept[name].shape != param.shape:
                    said += f': resized from {tuple(kept[name].shape)}'
            info[param] = dict(
                init_info=f'{type(self).__name__}, {self.checkpoint}: {said}',
                tmp_mean_value=param.data.mean().cpu(),
            )


@WEIGHT_INITIALIZERS.register_module()
class PretrainedVim(_Pretrained):
    """Loads a checkpoint into :class:`mmvim.models.VisionMamba`, and fails loudly.

    Takes published files, files converted with :func:`mmvim.checkpoints.convert_official` and
    checkpoints of whole models whose backbone is ours, behind any prefix; from a path or a URL;
    ``.safetensors`` or ``.pth``, of which weights alone are read. The position embedding is resized
    to the model's grid. What the model has no use for is left out and named in the log: the
    classifier, rope tables, a class token where the model has none, a final norm with
    ``out_norm='none'``. mmengine's log of the initialisation says of every parameter where in the
    file it came from, whether it was resized, or that it was drawn.

    mmengine's own ``Pretrained`` is the wrong tool: it neither converts keys nor fails where
    they are missing, so that a run silently starts from scratch.

    Args:
        checkpoint (str): Path or URL; ``#teacher`` behind it says which of several models in the
            file is meant.
        cls_token (str): Where a published file has its class token, see
            :func:`mmvim.checkpoints.convert_official`. Every released model is 'middle'.
            Defaults to 'middle'.
        allow_missing (Sequence[str]): Keys of the model that the file need not have; they keep
            their initial values. Defaults to ().
        allow_unexpected (Sequence[str]): Keys of the file to leave out. Defaults to ().
        patch_embed (str, optional): What becomes of a patch embedding for another number of
            channels or another patch size: 'mean' gives every channel the mean over those of the
            file, 'repeat' repeats them in turn, both times C / C' for C' channels instead of C;
            either resizes it to the patch size of the model
            (:func:`mmvim.checkpoints.patch_embed.resize_kernel`); 'skip' leaves the model's at its
            initial values. Defaults to None, an error.

    Raises:
        UserError: If the file cannot be read safely, is no Vim checkpoint, has another class
            token than ``cls_token`` says, or does not fit.
        ValueError: If there is no such ``patch_embed``.

    Example:
        >>> init_cfg = dict(
        ...     type='mmvim.PretrainedVim', checkpoint='vim_t_midclstok_76p1acc.pth')
    """

    family = VIM

    def __init__(
        self,
        checkpoint: str,
        cls_token: str = 'middle',
        allow_missing: Sequence[str] = (),
        allow_unexpected: Sequence[str] = (),
        patch_embed: str | None = None,
    ) -> None:
        super().__init__(checkpoint, allow_missing, allow_unexpected, patch_embed)
        self.cls_token = cls_token

    def _our_part(
        self, file: Mapping[str, torch.Tensor], module: Any
    ) -> tuple[dict[str, torch.Tensor], Mapping[str, torch.Tensor]]:
        """See the base class; where the class token is has been declared."""
        return our_part(file, self.checkpoint, self.cls_token)


@WEIGHT_INITIALIZERS.register_module()
class PretrainedVMamba(_Pretrained):
    """Loads a checkpoint into :class:`mmvim.models.VMamba`, and fails loudly.

    Takes published files, of the trainings or of dense models, with their old and new names (see
    :func:`mmvim.checkpoints.convert_vmamba`), converted ones, and checkpoints of whole models whose
    backbone is ours, as :class:`PretrainedVim` does. A training file holds the last weights
    and their average; ``#model_ema`` behind the path takes the average.

    The norms of a dense model's taps start at 1 and 0, as published, where the file has one norm
    alone, that of a classifier. What the model has no use for is left out and named in the log.

    Args:
        checkpoint (str): Path or URL; ``#model_ema`` behind it says which of several models in the
            file is meant.
        allow_missing (Sequence[str]): See :class:`PretrainedVim`. Defaults to ().
        allow_unexpected (Sequence[str]): See there. Defaults to ().
        patch_embed (str, optional): See there. Defaults to None, an error.

    Raises:
        UserError: If the file cannot be read safely, is no VMamba checkpoint or does not fit.
        ValueError: If there is no such ``patch_embed``.

    Example:
        >>> init_cfg = dict(
        ...     type='mmvim.PretrainedVMamba', checkpoint='vssm1_tiny_0230s_ckpt_epoch_264.pth')
    """

    family = VMAMBA
