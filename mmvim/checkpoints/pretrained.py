"""Start a backbone from a published or converted checkpoint, strictly."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.logging import MMLogger
from torch import nn

from mmvim.checkpoints.reading import read_weights
from mmvim.checkpoints.strict import by_module, load_strictly
from mmvim.checkpoints.vim import backbone_part, convert_official, is_published
from mmvim.errors import UserError
from mmvim.registry import WEIGHT_INITIALIZERS

_CLS_KEYS = ('cls_token', 'cls_pos_embed')


@WEIGHT_INITIALIZERS.register_module()
class PretrainedVim:
    """Loads a checkpoint into :class:`mmvim.models.VisionMamba`, and fails loudly.

    Takes published files, files converted with :func:`mmvim.checkpoints.convert_official` and
    checkpoints of whole models whose backbone is ours; from a path or a URL; ``.safetensors``
    or ``.pth``, of which weights alone are read. The position embedding is resized to the
    model's grid. What the model has no use for is left out and named in the log: the classifier,
    rope tables, a class token where the model has none, a final norm with ``out_norm='none'``.

    mmengine's own ``Pretrained`` is the wrong tool: it neither converts keys nor fails where
    they are missing, so that a run silently starts from scratch.

    Args:
        checkpoint (str): Path or URL.
        cls_token (str): Where a published file has its class token, see
            :func:`mmvim.checkpoints.convert_official`. Every released model is 'middle'.
            Defaults to 'middle'.
        allow_missing (Sequence[str]): Keys of the model that the file need not have; they keep
            their initial values. Defaults to ().
        allow_unexpected (Sequence[str]): Keys of the file to leave out. Defaults to ().

    Raises:
        UserError: If the file cannot be read safely, is no Vim checkpoint, has another class
            token than ``cls_token`` says, or does not fit.

    Example:
        >>> init_cfg = dict(
        ...     type='mmvim.PretrainedVim', checkpoint='vim_t_midclstok_76p1acc.pth')
    """

    def __init__(
        self,
        checkpoint: str,
        cls_token: str = 'middle',
        allow_missing: Sequence[str] = (),
        allow_unexpected: Sequence[str] = (),
    ) -> None:
        self.checkpoint = str(checkpoint)
        self.cls_token = cls_token
        self.allow_missing = tuple(allow_missing)
        self.allow_unexpected = tuple(allow_unexpected)

    def __call__(self, module: nn.Module) -> None:
        """Load the checkpoint into ``module``, a :class:`mmvim.models.VisionMamba`."""
        weights, rest = backbone_part(read_weights(self.checkpoint))
        try:
            if is_published(weights):
                weights = convert_official(weights, self.cls_token)
                rest |= weights.extras
        except (UserError, ValueError) as error:
            raise UserError(f'{self.checkpoint}: {error}') from error
        own = module.state_dict()
        unused = [key for key in weights if key in self.allow_unexpected]
        if 'cls_token' not in own:
            unused += [key for key in weights if key in _CLS_KEYS]
        if 'norm_f.weight' not in own:
            unused += [key for key in weights if key.startswith('norm_f.')]
        kept = {key: value for key, value in weights.items() if key not in unused}
        initial = {key: own[key] for key in self.allow_missing if key in own and key not in weights}
        load_strictly(module, {'state_dict': kept | initial}, self.checkpoint)
        logger = MMLogger.get_current_instance()
        logger.info(f'Loaded {len(kept)} tensors from {self.checkpoint}.')
        for what, keys in (
            ('no part of the backbone', rest),
            ('not used by this backbone', unused),
            ('kept at their initial values', initial),
        ):
            if keys:
                logger.info(f'{self.checkpoint}: {what}: {", ".join(by_module(keys))}.')
