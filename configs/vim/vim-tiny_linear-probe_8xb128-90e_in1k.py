# A linear classifier on the frozen features of Vim-Ti, fp32. A recipe of ours: crops and flips alone,
# labels as they are, SGD.
_base_ = [
    '../_base_/models/classifier_vim.py',
    'mmpretrain::_base_/datasets/imagenet_bs32_pil_bicubic.py',
    '../_base_/schedules/vim_300e.py',
]
model = dict(
    backbone=dict(
        # All blocks and the final norm; 0 would freeze patches, positions and class token alone.
        frozen_stages=24,
        init_cfg=dict(
            type='mmvim.PretrainedVim',
            checkpoint='checkpoints/vim-tiny.pth',
            cls_token='middle',
        ),
    ),
    head=dict(loss=dict(_delete_=True, type='CrossEntropyLoss')),
    train_cfg=dict(_delete_=True),
)
train_dataloader = dict(batch_size=128)
val_dataloader = dict(batch_size=128)
test_dataloader = val_dataloader
# 0.1 for 256 images.
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.4, momentum=0.9, weight_decay=0.0),
)
param_scheduler = [
    dict(type='CosineAnnealingLR', eta_min=0.0, begin=0, end=90, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=90)
custom_hooks = [dict(type='mmvim.StrictCheckpointHook')]
