# VMamba-B (s2l15), UperNet, ADE20K: 51.0 mIoU (paper), tested on whole images. The published recipe
# with one difference: its optimiser also decayed Ds, biases and the norms of the patch embedding and
# of downsampling.
_base_ = [
    '../_base_/models/upernet_vmamba.py',
    'mmseg::_base_/datasets/ade20k.py',
    'mmseg::_base_/default_runtime.py',
    '../_base_/schedules/vmamba_160k.py',
]
crop_size = (512, 512)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        arch='base_s2l15',
        drop_path_rate=0.6,
        # init_cfg=dict(type='mmvim.PretrainedVMamba', checkpoint='…'),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
train_dataloader = dict(batch_size=2, num_workers=2)
