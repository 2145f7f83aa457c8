"""The operators that stand in for mmcv's compiled ones, beside those where they are installed."""

import importlib
import importlib.util
import itertools
import random
from copy import deepcopy
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from repository import load_config
from scaled_down_detection import shrink, write_coco
from torch import Tensor
from torch.nn import functional

from mmvim import mmcv_ops
from mmvim.errors import UserError
from mmvim.mmcv_ops import roi_align, suppression
from mmvim.mmcv_ops.torchvision_ops import has_torchvision_ops

pytestmark = [pytest.mark.stack, pytest.mark.operators]

spec = importlib.util.find_spec('mmcv._ext')
HAS_COMPILED = spec is not None and isinstance(spec.loader, ExtensionFileLoader)
needs_compiled = pytest.mark.skipif(
    not HAS_COMPILED, reason='mmcv is here without its compiled operators (make install MMCV=full)'
)
SIZE, ROIS, CHANNELS = (3, 4), 40, 5


@pytest.fixture(params=['torchvision', 'torch'])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have operators come from torchvision, or from torch alone."""
    if request.param == 'torchvision' and not has_torchvision_ops():
        pytest.skip('torchvision has no operators that fit this torch')
    for module in (roi_align, suppression):
        monkeypatch.setattr(module, 'has_torchvision_ops', lambda: request.param == 'torchvision')
    return request.param


# --- what is served, and when ---

HIDE = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name == 'mmcv._ext' else find(name, *rest)
"""


def test_operators_where_mmcv_has_none() -> None:
    done = forked.run(
        f"""{HIDE}
import mmvim, torch
from mmvim.errors import UserError
from mmvim.mmcv_ops import sources
print(sources()['nms'], sources()['soft_nms'], sources()['all others'].split()[0])

import mmcv.ops
from mmcv.utils import collect_env
from mmengine.utils.dl_utils.misc import mmcv_full_available
print(mmcv_full_available(), collect_env()['MMCV Compiler'].split(':')[0])
boxes = torch.tensor([[0., 0, 4, 4], [0, 0, 4, 5], [5, 5, 6, 6]])
scores, classes = torch.tensor([0.2, 0.9, 0.5]), torch.tensor([0, 0, 1])
kept = mmcv.ops.batched_nms(boxes, scores, classes, dict(type='nms', iou_threshold=0.5))[1]
print(*kept.tolist())
convolution = mmcv.ops.ModulatedDeformConv2d(3, 4, 3)
try:
    convolution(torch.rand(1, 3, 8, 8), torch.rand(1, 18, 6, 6), torch.rand(1, 9, 6, 6))
except UserError as error:
    print(error)
""",
    )
    served, full, kept, *error = done.stdout.splitlines() or [done.stderr]
    source = 'torchvision' if has_torchvision_ops() else 'torch'
    assert served == f'{source} torch absent:', done.stderr
    assert full == 'True none' and kept == '1 2' and len(error) == 1, done.stderr
    for part in ('modulated_deform_conv_forward', 'make install MMCV=full', 'MMCV_WITH_OPS=1 pip'):
        assert part in error[0]


@needs_compiled
def test_a_compiled_build_stays_as_it_is() -> None:
    assert set(mmcv_ops.sources().values()) == {'compiled'}
    compiled = importlib.import_module('mmcv._ext')
    for name, functions in mmcv_ops.SERVED.items():
        for function in functions:
            assert getattr(compiled, function.__name__) is not function, name


# --- RoI Align ---


def random_rois(dtype: torch.dtype, height: int, width: int, scale: float) -> Tensor:
    """RoIs within, across and outside of the map, among them one without area."""
    side = torch.tensor([width, height, width, height]) / scale
    corners = torch.rand(ROIS, 4) * side * 1.6 - 0.3 * side
    low, high = corners.view(ROIS, 2, 2).sort(1).values.unbind(1)
    rois = torch.cat([torch.randint(0, 2, (ROIS, 1)), low, high], 1)
    rois[0, 3:] = rois[0, 1:3]
    rois[1, 1:] += 1000
    return rois.to(dtype)


def run_roi_align(
    module: Any, image: Tensor, rois: Tensor, grad: Tensor, pool_mode: int, **options: Any
) -> tuple[Tensor, ...]:
    """Output, both indices of the maximum, and the gradient by the map."""
    output = image.new_zeros(len(rois), image.shape[1], *SIZE)
    y, x = (torch.zeros_like(output) if pool_mode == 0 else image.new_zeros(0) for _ in 'yx')
    options |= dict(aligned_height=SIZE[0], aligned_width=SIZE[1], pool_mode=pool_mode)
    module.roi_align_forward(image, rois, output, y, x, **options)
    grad_image = torch.zeros_like(image)
    module.roi_align_backward(grad, rois, y, x, grad_image, **options)
    return output, y, x, grad_image


MODES = list(itertools.product((0, 1), (True, False)))
CASES = list(itertools.product(((13, 17), (1, 1)), (1.0, 0.3), (0, 2)))


@needs_compiled
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize(('pool_mode', 'aligned'), MODES)
def test_roi_align_equals_the_compiled_one(
    source: str, dtype: torch.dtype, pool_mode: int, aligned: bool
) -> None:
    compiled = importlib.import_module('mmcv._ext')
    torch.manual_seed(0)
    for shape, scale, ratio in CASES:
        options = dict(
            spatial_scale=scale, sampling_ratio=ratio, pool_mode=pool_mode, aligned=aligned
        )
        image = torch.randn(2, CHANNELS, *shape, dtype=dtype)
        rois = random_rois(dtype, *shape, scale)
        grad = torch.randn(ROIS, CHANNELS, *SIZE, dtype=dtype)
        ours = run_roi_align(roi_align, image, rois, grad, **options)
        theirs = run_roi_align(compiled, image, rois, grad, **options)
        for one, other in zip(ours[:3], theirs[:3]):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
        # A pixel's gradient is a sum of many; rounding goes by the sum of their magnitudes.
        size = run_roi_align(compiled, image, rois, grad.abs(), **options)[3].max().clamp(min=1)
        torch.testing.assert_close(ours[3] / size, theirs[3] / size, rtol=1e-6, atol=1e-6)


@needs_compiled
@pytest.mark.parametrize(('pool_mode', 'aligned'), MODES)
def test_roi_align_in_half_precision_is_no_less_exact(
    source: str, pool_mode: int, aligned: bool
) -> None:
    """The compiled operator rounds each step to half precision."""
    compiled = importlib.import_module('mmcv._ext')
    torch.manual_seed(0)
    options = dict(spatial_scale=0.25, sampling_ratio=0, pool_mode=pool_mode, aligned=aligned)
    image = torch.randn(2, CHANNELS, 13, 17).half()
    rois = random_rois(torch.float16, 13, 17, 0.25)
    grad = torch.randn(ROIS, CHANNELS, *SIZE).half()
    exact = run_roi_align(compiled, image.double(), rois.double(), grad.double(), **options)
    ours = run_roi_align(roi_align, image, rois, grad, **options)
    theirs = run_roi_align(compiled, image, rois, grad, **options)
    for index in (0, 3):
        assert ours[index].dtype == torch.float16
        errors = [(each[index] - exact[index]).norm() for each in (ours, theirs)]
        assert errors[0] <= errors[1]


@needs_compiled
def test_roi_align_of_reversed_rois_and_no_rois(source: str) -> None:
    compiled = importlib.import_module('mmcv._ext')
    image = torch.randn(1, CHANNELS, 8, 8)
    options = dict(spatial_scale=1.0, sampling_ratio=0, pool_mode=1)
    none = run_roi_align(
        roi_align, image, image.new_zeros(0, 5), image.new_zeros(0, CHANNELS, *SIZE),
        aligned=True, **options,
    )  # fmt: skip
    assert none[0].shape == (0, CHANNELS, *SIZE) and not none[3].any()
    rois = torch.tensor([[0.0, 4, 4, 2, 2]])
    grad = torch.randn(1, CHANNELS, *SIZE)
    for module, error in ((compiled, RuntimeError), (roi_align, UserError)):
        with pytest.raises(error, match='RoI' if error is UserError else 'ROI'):
            run_roi_align(module, image, rois, grad, aligned=True, **options)
    ours = run_roi_align(roi_align, image, rois, grad, aligned=False, **options)
    theirs = run_roi_align(compiled, image, rois, grad, aligned=False, **options)
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def sampled(
    image: Tensor, roi: Tensor, scale: float, ratio: int, pool_mode: int, aligned: bool
) -> Tensor:
    """RoI Align of one RoI with area, by torch's own sampling and pooling."""
    points, inside, grid = [], [], []
    for axis in (1, 0):  # y, then x
        length = image.shape[3 - axis]
        start, end = roi[1 + axis] * scale - 0.5 * aligned, roi[3 + axis] * scale - 0.5 * aligned
        extent = end - start if aligned else (end - start).clamp(min=1)
        count = SIZE[1 - axis]
        grid.append(ratio or int((extent / count).ceil()))
        place = start + extent * (torch.arange(count * grid[-1]).to(roi) + 0.5) / (count * grid[-1])
        points.append(2 * place / (length - 1) - 1)
        inside.append((place >= -1) & (place <= length))
    where = torch.stack(torch.meshgrid(*points, indexing='ij')[::-1], -1)[None]
    values = functional.grid_sample(
        image[int(roi[0]), None], where, padding_mode='border', align_corners=True
    )
    pool = functional.avg_pool2d if pool_mode else functional.max_pool2d
    return pool(values * (inside[0][:, None] & inside[1]), grid)[0]


@pytest.mark.parametrize(('pool_mode', 'aligned'), MODES)
@pytest.mark.parametrize('ratio', [0, 2])
def test_roi_align_samples_and_pools(
    source: str, monkeypatch: pytest.MonkeyPatch, pool_mode: int, aligned: bool, ratio: int
) -> None:
    if source == 'torch':  # in many parts
        monkeypatch.setattr(roi_align, 'MAX_SAMPLES', 100)
        monkeypatch.setattr(roi_align, 'MAX_VALUES', 100)
    torch.manual_seed(0)
    dtype = torch.float32 if source == 'torchvision' else torch.float64
    tolerance = 1e-5 if source == 'torchvision' else 1e-12
    image = torch.randn(2, CHANNELS, 13, 17, dtype=dtype, requires_grad=True)
    rois = random_rois(dtype, 13, 17, 0.5)[1:]
    grad = torch.randn(len(rois), CHANNELS, *SIZE, dtype=dtype)
    expected = torch.stack([sampled(image, roi, 0.5, ratio, pool_mode, aligned) for roi in rois])
    (expected_grad,) = torch.autograd.grad(expected, image, grad)
    output, _, _, grad_image = run_roi_align(
        roi_align, image.detach(), rois, grad,
        spatial_scale=0.5, sampling_ratio=ratio, pool_mode=pool_mode, aligned=aligned,
    )  # fmt: skip
    torch.testing.assert_close(output, expected.detach(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(grad_image, expected_grad, rtol=tolerance, atol=tolerance)


def test_roi_align_in_bfloat16(source: str) -> None:
    """Which neither mmcv nor torchvision compiles for."""
    torch.manual_seed(0)
    image, rois = (
        torch.randn(2, CHANNELS, 13, 17).bfloat16(),
        random_rois(torch.bfloat16, 13, 17, 1),
    )
    grad = torch.randn(ROIS, CHANNELS, *SIZE).bfloat16()
    options = dict(spatial_scale=1.0, sampling_ratio=0, pool_mode=1, aligned=True)
    found = run_roi_align(roi_align, image, rois, grad, **options)
    exact = run_roi_align(roi_align, image.float(), rois.float(), grad.float(), **options)
    for one, other in zip(found, exact):
        torch.testing.assert_close(one, other.bfloat16(), rtol=0.02, atol=0.02)


# --- suppression ---


def random_boxes(count: int, grid: int) -> tuple[Tensor, Tensor]:
    """Boxes and scores; on a grid there are equal scores, equal boxes and boxes without area."""
    low = torch.rand(count, 2) * 100
    boxes = torch.cat([low, low + torch.rand(count, 2) * 60], 1)
    scores = torch.rand(count)
    return ((boxes / grid).round(), (scores * 10).round() / 10) if grid else (boxes, scores)


@needs_compiled
@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('grid', [0, 1, 20])
def test_nms_equals_the_compiled_one(source: str, grid: int, offset: int) -> None:
    compiled = importlib.import_module('mmcv._ext')
    torch.manual_seed(0)
    for count, threshold in itertools.product((0, 1, 2, 300, 1500), (0.0, 0.3, 0.6, 0.7, 1.0)):
        boxes, scores = random_boxes(count, grid)
        options = dict(iou_threshold=threshold, offset=offset)
        ours = suppression.nms(boxes, scores, **options)
        torch.testing.assert_close(ours, compiled.nms(boxes, scores, **options), rtol=0, atol=0)


def overlap(boxes: Tensor) -> Tensor:
    """Intersection over union of all pairs."""
    boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
    sides = [
        torch.minimum(boxes[:, None, i + 2], boxes[:, i + 2])
        - torch.maximum(boxes[:, None, i], boxes[:, i])
        for i in (0, 1)
    ]
    common = sides[0].clamp(min=0) * sides[1].clamp(min=0)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return common / (area[:, None] + area - common)


@pytest.mark.parametrize('dtype', [torch.float16, torch.float64])
@pytest.mark.parametrize('count', [0, 1, 400])
def test_nms_keeps_what_no_better_kept_box_overlaps(
    source: str, count: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    boxes, scores = (tensor.to(dtype) for tensor in random_boxes(count, 0))
    overlaps = overlap(boxes).tolist()
    expected: list[int] = []
    for index in scores.sort(0, descending=True).indices.tolist():
        if not any(overlaps[index][other] > 0.5 for other in expected):
            expected.append(index)
    assert suppression.nms(boxes, scores, 0.5, 0).tolist() == expected


def test_nms_of_mmcv_filters_and_cuts(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """mmcv's own function around ours: scores, a limit, classes, and half precision."""
    ops = importlib.import_module('mmcv.ops.nms')
    monkeypatch.setattr(ops.ext_module, 'nms', suppression.nms)
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 5], [9, 9, 12, 12], [9, 9, 12, 12]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.2])
    for dtype in (torch.float32, torch.float16):
        dets, kept = ops.nms(boxes.to(dtype), scores.to(dtype), 0.5, score_threshold=0.3)
        assert kept.tolist() == [0, 2] and dets.dtype == dtype
        assert ops.nms(boxes.to(dtype), scores.to(dtype), 0.5, max_num=1)[1].tolist() == [0]
        dets, kept = ops.batched_nms(
            boxes.to(dtype), scores.to(dtype), torch.tensor([0, 1, 1, 1]), dict(iou_threshold=0.5)
        )
        assert kept.tolist() == [0, 1, 2]
    dets, kept = ops.nms(boxes.numpy(), scores.numpy(), 0.5)
    assert kept.tolist() == [0, 2] and dets.shape == (2, 5)


@needs_compiled
@pytest.mark.parametrize('method', [0, 1, 2])
@pytest.mark.parametrize('grid', [0, 1, 20])
def test_soft_nms_equals_the_compiled_one(method: int, grid: int) -> None:
    compiled = importlib.import_module('mmcv._ext')
    torch.manual_seed(0)
    for count, threshold, offset in itertools.product((0, 1, 2, 200), (0.0, 0.5, 1.0), (0, 1)):
        boxes, scores = random_boxes(count, grid)
        options = dict(
            iou_threshold=threshold, sigma=0.5, min_score=0.05, method=method, offset=offset
        )
        dets = torch.zeros(2, count, 5)
        ours = suppression.softnms(boxes, scores, dets[0], **options)
        theirs = compiled.softnms(boxes, scores, dets[1], **options)
        assert ours.tolist() == theirs.tolist()
        one, other = dets[:, : len(ours)]
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6, equal_nan=True)


def test_soft_nms_lowers_scores() -> None:
    """A pair that overlaps by a half, one box far away, one whose score falls too low."""
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2], [9, 9, 10, 10], [0, 0, 4, 4]])
    scores = torch.tensor([0.9, 0.8, 0.5, 0.1])
    dets = torch.zeros(4, 5)
    kept = suppression.softnms(boxes, scores, dets, 0.3, 0.5, 0.05, method=1, offset=0)
    assert kept.tolist() == [0, 2, 1]
    torch.testing.assert_close(dets[:3, 4], torch.tensor([0.9, 0.5, 0.4]))
    torch.testing.assert_close(dets[:3, :4], boxes[kept])


# --- a detector ---


@needs_compiled
def test_mask_rcnn_learns_and_finds_the_same(
    source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One iteration and a test, on compiled operators and on ours."""
    pytest.importorskip('mmdet')
    compiled = importlib.import_module('mmcv._ext')
    config = load_config('vitdet/vitdet_mask-rcnn_vim-tiny_lsj-100e_coco.py')
    config.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
    shrink(config, tmp_path)
    write_coco(config)
    results, calls = [], []
    for served in (False, True):
        if served:
            for function in (*mmcv_ops.SERVED['nms'], *mmcv_ops.SERVED['roi_align']):
                monkeypatch.setattr(
                    compiled,
                    function.__name__,
                    lambda *args, f=function, **options: (calls.append(f), f(*args, **options))[1],
                )
        with DefaultScope.overwrite_default_scope('mmdet'):
            torch.manual_seed(0)
            np.random.seed(0)
            random.seed(0)
            config.experiment_name = f'{tmp_path.name}-{served}'
            runner = Runner.from_cfg(deepcopy(config))
            model = runner.train()
            losses = runner.message_hub.get_scalar('train/loss').data[0]
            metrics = runner.test()
        results.append((losses, dict(model.named_parameters()), metrics))
    assert set(calls) == {*mmcv_ops.SERVED['nms'], *mmcv_ops.SERVED['roi_align']}
    (loss, weights, metrics), (our_loss, our_weights, our_metrics) = results
    torch.testing.assert_close(our_loss, loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(our_weights, weights, rtol=1e-4, atol=1e-6)
    assert our_metrics == pytest.approx(metrics, abs=1e-6)


# --- what mmcv compiles for GPUs alone: its own functions around ours, on a CPU ---


@pytest.mark.parametrize('weight', [None, torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=torch.float64)])
def test_sigmoid_focal_loss(monkeypatch: pytest.MonkeyPatch, weight: Tensor | None) -> None:
    ops = importlib.import_module('mmcv.ops.focal_loss')
    for function in mmcv_ops.SERVED['sigmoid_focal_loss']:
        monkeypatch.setattr(ops.ext_module, function.__name__, function)
    torch.manual_seed(0)
    logits = (5 * torch.randn(6, 4, dtype=torch.float64)).requires_grad_()
    target = torch.tensor([0, 1, 2, 3, 0, 4 if weight is None else 2])  # 4 is background
    loss = ops.sigmoid_focal_loss(logits, target, 1.5, 0.3, weight, 'none')
    positive = functional.one_hot(target, 5)[:, :4].double()
    p = logits.sigmoid()
    miss = torch.where(positive == 1, 1 - p, p)
    plain = functional.binary_cross_entropy_with_logits(logits, positive, reduction='none')
    expected = (0.3 * positive + 0.7 * (1 - positive)) * miss**1.5 * plain
    expected = expected if weight is None else expected * weight[target, None]
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    grads = [
        torch.autograd.grad(each.sum(), logits, retain_graph=True)[0] for each in (loss, expected)
    ]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)
    sure = torch.tensor([[200.0, -200.0]], requires_grad=True)
    ops.sigmoid_focal_loss(sure, torch.tensor([1]), 2.0, 0.25, None, 'mean').backward()
    assert sure.grad is not None and sure.grad.isfinite().all()


def test_deformable_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    ops = importlib.import_module('mmcv.ops.multi_scale_deform_attn')
    for function in mmcv_ops.SERVED['ms_deform_attn']:
        monkeypatch.setattr(ops.ext_module, function.__name__, function)
    torch.manual_seed(0)
    shapes = torch.tensor([[4, 5], [2, 3]])
    value = torch.randn(2, 26, 3, 4, requires_grad=True)
    locations = torch.rand(2, 7, 3, 2, 2, 2, requires_grad=True)
    weights = torch.rand(2, 7, 3, 2, 2, requires_grad=True)
    inputs = (value, locations, weights)
    ours = ops.MultiScaleDeformableAttnFunction.apply(
        value, shapes, torch.tensor([0, 20]), locations, weights, 64
    )
    expected = ops.multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
    torch.testing.assert_close(ours, expected)
    grad = torch.randn_like(ours)
    for one, other in zip(*(torch.autograd.grad(each, inputs, grad) for each in (ours, expected))):
        torch.testing.assert_close(one, other)
    half = ops.MultiScaleDeformableAttnFunction.apply(
        value.bfloat16(), shapes, torch.tensor([0, 20]), locations, weights, 64
    )
    assert half.dtype == torch.bfloat16
