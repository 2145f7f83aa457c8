"""What configs name of this room: each needs a library, and none is imported without it."""

from importlib.util import find_spec

if find_spec('mmseg') is not None:
    from mmvim.datasets.camvid import CamVidDataset as CamVidDataset
if find_spec('mmdet') is not None:
    from mmvim.datasets.nuclei import NucleiDataset as NucleiDataset
    from mmvim.datasets.nuclei import OutlineVisualizer as OutlineVisualizer
    from mmvim.datasets.nuclei import To8BitBGR as To8BitBGR
