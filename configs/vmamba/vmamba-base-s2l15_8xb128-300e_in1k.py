# VMamba-B (s2l15), ImageNet-1K: 83.9 top-1 (paper). The published recipe with one difference: its
# optimiser, which looks at dimensions and names, also decayed A_logs and the biases of dt.
_base_ = [
    '../_base_/models/classifier_vmamba.py',
    '../_base_/datasets/imagenet_vmamba_224.py',
    '../_base_/schedules/vmamba_300e.py',
]
model = dict(
    backbone=dict(arch='base_s2l15', drop_path_rate=0.6),
    head=dict(in_channels=1024),
)
