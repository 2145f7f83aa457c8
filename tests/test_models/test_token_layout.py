"""Class tokens among the patches, and the grid of a position embedding that does not tell it."""

import pytest
import torch

from mmvim.models.pos_embed import stored_grid
from mmvim.models.token_layout import CLS_TOKENS, cls_positions, insert_tokens, split_tokens


@pytest.mark.parametrize('patches', [1, 2, 15, 196])
@pytest.mark.parametrize(
    'cls_token, expected',
    [
        ('none', lambda n: []),
        ('head', lambda n: [0]),
        ('middle', lambda n: [n // 2]),
        ('double', lambda n: [0, n + 1]),
    ],
)
def test_tokens_go_in_and_come_out(cls_token, expected, patches):
    rows = torch.arange(2.0 * patches * 3).reshape(2, patches, 3)
    tokens = -1 - torch.arange(2.0 * CLS_TOKENS[cls_token] * 3).reshape(2, -1, 3)
    sequence = insert_tokens(rows, tokens, cls_token)
    found = (sequence[0, :, 0] < 0).nonzero().flatten().tolist()
    assert found == expected(patches) == list(cls_positions(cls_token, patches))
    assert torch.equal(sequence[:, found], tokens)
    others = [i for i in range(sequence.shape[1]) if i not in found]
    assert torch.equal(sequence[:, others], rows)
    for part, wanted in zip(split_tokens(sequence, cls_token), (rows, tokens)):
        assert torch.equal(part, wanted)


def test_bad_layouts_are_named():
    with pytest.raises(ValueError, match=r"'none', 'head', 'middle', 'double'.*'tail'"):
        cls_positions('tail', 4)
    with pytest.raises(ValueError, match="'tail'"):
        split_tokens(torch.zeros(1, 3, 2), 'tail')
    with pytest.raises(ValueError, match="'double' has 2 class tokens, got 1"):
        insert_tokens(torch.zeros(1, 4, 2), torch.zeros(1, 1, 2), 'double')
    with pytest.raises(ValueError, match='sequence of 1 tokens holds no 2'):
        split_tokens(torch.zeros(1, 1, 2), 'double')


def test_square_grid():
    assert [stored_grid(None, n) for n in (1, 196, 10**12)] == [(1, 1), (14, 14), (10**6, 10**6)]
    for rows in (0, -4, 2, 195, 197):
        with pytest.raises(ValueError, match=f'{rows} patch rows, which is no square grid'):
            stored_grid(None, rows)
