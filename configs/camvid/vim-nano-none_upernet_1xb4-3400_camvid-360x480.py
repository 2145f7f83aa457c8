# The paper's ablation on real images: scans forward only.
_base_ = './vim-nano_upernet_1xb4-3400_camvid-360x480.py'
model = dict(backbone=dict(direction='none'))
