# Vim-Ti, UperNet, ADE20K with the optimiser that gave the published 41.0 mIoU: only patch and
# position embedding learn at a reduced rate (0.92^25), every block at the full one; position
# embedding and A_log decay. The model is the same. Not repeated: the published loading took the
# first row of the position embedding for the class token, which stands in the middle, and so
# misplaced half the rows.
_base_ = './vim-tiny_upernet_4xb8-60k_ade20k-512x512.py'
optim_wrapper = dict(paramwise_cfg=dict(as_published='segmentation'))
