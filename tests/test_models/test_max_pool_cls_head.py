"""The head of the max-pool ablation: what it computes, learns from and refuses."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import DefaultScope

pytest.importorskip('mmpretrain')

from mmvim.models import MaxPoolClsHead
from mmvim.registry import MODELS


@pytest.fixture(autouse=True)
def in_mmpretrain():
    """Where the head is used: its loss is mmpretrain's."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


@pytest.fixture
def head():
    torch.manual_seed(0)
    head = MaxPoolClsHead(num_classes=5, in_channels=8).double()
    head.init_weights()
    return head


@pytest.fixture
def tokens():
    return torch.randn(3, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_greatest_score_of_each_class(head, tokens):
    expected = torch.stack(
        [
            torch.stack([max(token @ row for token in image) for row in head.fc.weight])
            for image in tokens
        ]
    )
    torch.testing.assert_close(head((tokens,)), expected + head.fc.bias, rtol=0, atol=1e-12)
    maps = tokens.transpose(1, 2).unflatten(2, (7, 1))
    torch.testing.assert_close(head((maps,)), head((tokens,)), rtol=0, atol=0)
    # The last tap counts.
    torch.testing.assert_close(head((tokens[:, :2], tokens)), head((tokens,)), rtol=0, atol=0)


def test_one_token_a_class_learns(head, tokens):
    tokens.requires_grad_()
    head((tokens,))[:, 2].sum().backward()
    best = head.fc(tokens)[..., 2].argmax(dim=1)
    moved = tokens.grad.abs().sum(dim=2) > 0
    assert torch.equal(moved, F.one_hot(best, 7).bool())


def test_parameters_and_arguments_are_those_of_the_linear_head(head):
    from mmpretrain.models import LinearClsHead

    theirs = LinearClsHead(num_classes=5, in_channels=8)
    assert {k: v.shape for k, v in head.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    config = dict(
        type='mmvim.MaxPoolClsHead',
        num_classes=5,
        in_channels=8,
        topk=(1, 2),
        cal_acc=True,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
    )
    assert isinstance(MODELS.build(config), MaxPoolClsHead)
    LinearClsHead(**{key: value for key, value in config.items() if key != 'type'})


@pytest.mark.parametrize('mixed', [False, True])
def test_loss_and_prediction(head, tokens, mixed):
    from mmpretrain.structures import DataSample

    labels = torch.tensor([4, 0, 2])
    samples = [DataSample().set_gt_label(label) for label in labels.tolist()]
    target = labels
    if mixed:
        target = torch.softmax(torch.randn(3, 5, dtype=torch.float64), dim=1)
        head.scored.loss_module = MODELS.build(
            dict(type='mmpretrain.CrossEntropyLoss', use_soft=True)
        )
        samples = [DataSample().set_gt_score(score) for score in target]
    scores = head((tokens,))
    losses = head.loss((tokens,), samples)
    assert set(losses) == {'loss'}
    torch.testing.assert_close(losses['loss'], F.cross_entropy(scores, target))
    for given in (samples, None):
        for sample, score in zip(head.predict((tokens,), given), scores):
            torch.testing.assert_close(sample.pred_score, score.softmax(0))
            assert sample.pred_label == score.argmax()


@pytest.mark.parametrize(
    'feats', [torch.zeros(2, 8), torch.zeros(2, 7, 4), torch.zeros(2, 4, 8, 8)]
)
def test_what_is_no_sequence_is_refused(head, feats):
    with pytest.raises(ValueError, match=r"\(B, L, 8\), got .*out_type='raw'"):
        head((feats.double(),))


@pytest.mark.parametrize('options', [dict(num_classes=0), dict(in_channels=-1)])
def test_numbers_have_to_be_positive(options):
    with pytest.raises(ValueError, match='must be positive'):
        MaxPoolClsHead(**{**dict(num_classes=5, in_channels=8), **options})


def test_a_misspelt_argument_is_named():
    with pytest.raises(TypeError, match="did you mean 'topk'"):
        MaxPoolClsHead(num_classes=5, in_channels=8, topks=(1,))
