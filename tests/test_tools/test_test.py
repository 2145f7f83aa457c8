"""tools/test.py: metrics, pictures, files, augmentation, and strictness about the checkpoint."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.stack
Run = Callable[..., Any]


@pytest.fixture
def toy_weights(toy: Path) -> Path:
    """Weights that make the toy model predict 2x + 1."""
    state = {
        'hidden.weight': torch.tensor([[1.0], [1.0]]),
        'hidden.bias': torch.zeros(2),
        'head.weight': torch.ones(1, 2),
        'head.bias': torch.ones(1),
    }
    torch.save(dict(state_dict=state), toy.parent / 'toy.pth')
    return toy.parent / 'toy.pth'


def test_prints_the_metrics_of_these_weights(run: Run, toy: Path, toy_weights: Path) -> None:
    outcome = run('test', toy, toy_weights, '--work-dir', 'w')
    assert outcome.code == 0
    assert 'toy/mean: 1.8750  toy/count: 8' in outcome.out  # the mean of 2x + 1, x = 0, 1/8 ... 7/8


def test_dump_holds_every_prediction(run: Run, toy: Path, toy_weights: Path) -> None:
    outcome = run('test', toy, toy_weights, '--dump', 'deep/er/all.pkl')
    assert 'predictions: deep/er/all.pkl' in outcome.out
    dumped = pickle.loads(Path('deep/er/all.pkl').read_bytes())
    assert [float(entry['prediction']) for entry in dumped] == [1 + x / 4 for x in range(8)]


def test_dump_must_be_a_pickle(run: Run, toy: Path, toy_weights: Path) -> None:
    outcome = run('test', toy, toy_weights, '--dump', 'all.json')
    assert outcome.code == 2
    assert '.pkl, not all.json' in outcome.sentence


def test_what_a_toy_lacks_is_one_sentence(run: Run, toy: Path, toy_weights: Path) -> None:
    sentence = run('test', toy, toy_weights, '--show-dir', 's').sentence
    assert '--show-dir needs visualizer and default_hooks.visualization' in sentence
    sentence = run('test', toy, toy_weights, '--format-dir', 'f').sentence
    assert '(ToyMetric) has no file format of its own; use --dump' in sentence
    sentence = run('test', toy, toy_weights, '--tta').sentence
    assert '--tta needs tta_model and tta_pipeline' in sentence


def test_checkpoint_of_another_architecture(run: Run, toy: Path, toy_weights: Path) -> None:
    state = torch.load(toy_weights)['state_dict']
    state['head.weight'] = torch.ones(1, 3)
    state['extra'] = state.pop('head.bias')
    torch.save(dict(state_dict=state), 'other.pth')
    outcome = run('test', toy, 'other.pth')
    assert outcome.code == 1
    assert outcome.sentence == (
        'checkpoint other.pth does not fit the ToyModel of this config: 1 key missing '
        '(head.bias); 1 key unexpected (extra); 1 key of another shape (head.weight: (1, 3) in '
        'the file, (1, 2) in the model); use the config it was trained with'
    )


def test_many_keys_are_counted_and_three_named(run: Run, segmentation: Path, weights: Path) -> None:
    options = ('--cfg-options', 'model.backbone.depth=34')
    sentence = run('test', segmentation, weights, *options).sentence
    assert 'keys missing (backbone.layer1.2.' in sentence
    assert sentence.count('backbone.layer') == 3
    assert '…)' in sentence


def test_weights_behind_another_entry_and_prefix(run: Run, toy: Path, toy_weights: Path) -> None:
    state = torch.load(toy_weights)['state_dict']
    wrapped = {f'module._orig_mod.{key}': value for key, value in state.items()}
    for held in (dict(model=state), dict(weights=wrapped), dict(teacher=wrapped, student=state)):
        torch.save(held, 'other.pth')
        path = 'other.pth#teacher' if 'teacher' in held else 'other.pth'
        assert run('test', toy, path, '--work-dir', 'w').code == 0
    sentence = run('test', toy, 'other.pth').sentence
    assert sentence.startswith('other.pth holds 2 models, under teacher, student: say which')


def test_files_that_are_no_checkpoints(run: Run, toy: Path, toy_weights: Path) -> None:
    whole = toy_weights.read_bytes()
    Path('cut.pth').write_bytes(whole[: len(whole) // 2])
    assert 'cut.pth cannot be read as a checkpoint' in run('test', toy, 'cut.pth').sentence
    Path('empty.pth').touch()
    assert 'empty.pth cannot be read as a checkpoint' in run('test', toy, 'empty.pth').sentence
    Path('text.pth').write_text('these are no weights')
    assert 'text.pth cannot be read as a checkpoint' in run('test', toy, 'text.pth').sentence
    torch.save([1, 2], 'list.pth')
    assert 'list.pth is no checkpoint: it holds a list' in run('test', toy, 'list.pth').sentence
    torch.save(dict(epoch=3), 'bare.pth')
    sentence = run('test', toy, 'bare.pth').sentence
    assert 'bare.pth is no checkpoint: it holds a dict of epoch, but no weights' in sentence
    assert 'is a folder' in run('test', toy, toy.parent).sentence
    assert f'did you mean {toy_weights}?' in run('test', toy, toy.parent / 'tyo.pth').sentence


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs /dev/full')
@pytest.mark.parametrize(
    ('tool', 'option', 'written'),
    [
        ('test', '--dump', 'full/a.pkl'),
        ('print_config', '--save-path', 'full/a.py'),
        ('browse_dataset', '--out', 'full/000000.png'),
    ],
)
def test_a_full_disk_is_one_sentence(
    tool: str, option: str, written: str, run: Run, segmentation: Path, weights: Path
) -> None:
    Path('full').mkdir()
    Path(written).symlink_to('/dev/full')
    checkpoint = (weights,) if tool == 'test' else ()
    outcome = run(tool, segmentation, *checkpoint, option, 'full' if option == '--out' else written)
    assert outcome.code == 1
    assert 'No space left on device' in outcome.sentence


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('augmented', [(), ('--tta',)])
def test_a_mask_that_does_not_fit_is_named(
    augmented: tuple[str, ...], workers: int, run: Run, segmentation: Path, weights: Path
) -> None:
    Image.new('L', (40, 31)).save('scenes/labels/2.png')
    options = ('--cfg-options', f'test_dataloader.num_workers={workers}')
    outcome = run('test', segmentation, weights, '--work-dir', 'w', *augmented, *options)
    assert outcome.code == 1
    assert outcome.sentence.startswith(
        'scenes/labels/2.png has shape (31, 40), but its image scenes/images/2.png (32, 40)'
    )


def test_segmentation_writes_pictures_labels_and_measures(
    run: Run, segmentation: Path, weights: Path
) -> None:
    argv = ('--show-dir', 'show', '--format-dir', 'format', '--work-dir', 'w')
    outcome = run('test', segmentation, weights, *argv)
    assert outcome.code == 0
    assert 'mIoU' in outcome.out
    drawn = sorted(Path('show/vis_data/vis_image').iterdir())
    # The number behind the name, a step, depends on the version of mmseg.
    names = [path.name.rpartition('_')[0] for path in drawn]
    assert names == [f'test_{index}.png' for index in range(4)]
    assert 'pictures: show/vis_data/vis_image' in outcome.out
    labels = [np.asarray(Image.open(f'format/{index}.png')) for index in range(4)]
    assert all(label.shape == (32, 40) and label.max() <= 2 for label in labels)


def test_format_without_ground_truth_measures_nothing(
    run: Run, segmentation: Path, weights: Path
) -> None:
    text = segmentation.read_text()
    segmentation.write_text(
        text + 'test_dataloader = dict(val_dataloader, dataset=dict(dataset, test_mode=True, '
        "data_prefix=dict(img_path='images'), "
        'pipeline=[test_pipeline[0], test_pipeline[1], test_pipeline[3]]))\n'
    )
    outcome = run('test', segmentation, weights, '--format-dir', 'format', '--work-dir', 'w')
    assert outcome.code == 0
    assert 'mIoU: ' not in outcome.out
    assert len(list(Path('format').glob('*.png'))) == 4


def test_augmentation_of_the_config(run: Run, segmentation: Path, weights: Path) -> None:
    plain = run('test', segmentation, weights, '--dump', 'plain.pkl', '--work-dir', 'w')
    tta = run('test', segmentation, weights, '--tta', '--dump', 'tta.pkl', '--work-dir', 'w2')
    assert plain.code == tta.code == 0
    assert 'scale_factor=1.75' in Path('w2', segmentation.name).read_text()
    assert "type='SegTTAModel'" in Path('w2', segmentation.name).read_text()
    first, second = (pickle.loads(Path(f'{n}.pkl').read_bytes()) for n in ('plain', 'tta'))
    shapes = [entry['pred_sem_seg']['data'].shape for entry in second]
    assert shapes == [(1, 32, 40)] * 4
    assert any(
        not torch.equal(a['pred_sem_seg']['data'], b['pred_sem_seg']['data'])
        for a, b in zip(first, second, strict=True)
    )


def test_missing_test_data(run: Run, segmentation: Path, weights: Path) -> None:
    option = 'test_dataloader.dataset.data_root=nowhere'
    sentence = run('test', segmentation, weights, '--cfg-options', option).sentence
    assert sentence.startswith("test_dataloader.dataset.data_root is 'nowhere'")


def test_output_folder_that_cannot_be_written(run: Run, segmentation: Path, weights: Path) -> None:
    for option, value in (('--show-dir', 'x'), ('--format-dir', 'x'), ('--dump', 'x/a.pkl')):
        folder = segmentation / value  # inside a file
        assert 'cannot be written' in run('test', segmentation, weights, option, folder).sentence
