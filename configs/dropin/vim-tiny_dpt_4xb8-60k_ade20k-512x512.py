# mmseg's DPT, Vim-Ti in the place of ViT-B. Its head reads pairs of a map and a class token, the
# one exception to dense models running without: the class token stays in the middle.
_base_ = [
    '../_base_/mmvim.py',
    'mmseg::_base_/models/dpt_vit-b16.py',
    'mmseg::_base_/datasets/ade20k.py',
    'mmseg::_base_/default_runtime.py',
    '../_base_/schedules/vim_60k.py',
]
custom_imports = dict(imports=['mmvim'], allow_failed_imports=False)
crop_size = (512, 512)
model = dict(
    data_preprocessor=dict(size=crop_size),
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='mmvim.VisionMamba',
        arch='tiny',
        img_size=512,
        cls_token='middle',
        out_type='featmap_cls',
        out_norm='none',
        out_indices=[5, 11, 17, 23],
        drop_path_rate=0.1,
        # init_cfg=dict(type='mmvim.PretrainedVim', checkpoint='…', cls_token='middle'),
    ),
    decode_head=dict(
        in_channels=(192, 192, 192, 192),
        embed_dims=192,
        post_process_channels=[24, 48, 96, 192],
    ),
)
optim_wrapper = dict(
    optimizer=dict(lr=2e-4, weight_decay=0.1), paramwise_cfg=dict(layer_decay_rate=0.92)
)
train_dataloader = dict(batch_size=8, num_workers=8)
