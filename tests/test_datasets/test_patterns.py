"""Scenes of the patterns dataset: what is drawn, and that only the texture tells the class."""

import numpy as np
import pytest
from scipy import stats

from mmvim.datasets.patterns import CLASSES, PALETTE, TEXTURE_CLASSES, PatternsSpec, make_scene
from mmvim.datasets.patterns.layouts import Item, make_item
from mmvim.datasets.patterns.outlines import OUTLINES, draw_outline
from mmvim.datasets.patterns.scenes import MIN_VISIBLE_AREA
from mmvim.datasets.patterns.textures import TEXTURES, render_texture, standardise

LABELS = range(1, len(CLASSES))
SPEC = PatternsSpec(train=500, val=10, size=96, seed=3, layouts=('ade',))
# Chance of a test statistic this large if there is no dependence. The data are seeded: the tests
# below either always pass or always fail.
SIGNIFICANT = 1e-3


@pytest.fixture(scope='module')
def scenes():
    return [make_item(SPEC, Item(False, 'train', index)) for index in range(SPEC.train)]


@pytest.fixture(scope='module')
def objects(scenes):
    """Class, outline, area, mean colour and contrast of every object."""
    found = {'label': [], 'outline': [], 'area': [], 'colour': [], 'contrast': []}
    for scene in scenes:
        for thing in scene.objects:
            pixels = scene.image[thing.mask].astype(float)
            found['label'].append(thing.label)
            found['outline'].append(thing.outline)
            found['area'].append(thing.mask.sum())
            found['colour'].append(pixels.mean(axis=0))
            found['contrast'].append(np.sqrt(pixels.var(axis=0).sum()))
    return {name: np.array(values) for name, values in found.items()}


def depends_on(values, labels):
    """Whether the distribution of a number differs between the classes."""
    return stats.kruskal(*(values[labels == k] for k in LABELS)).pvalue < SIGNIFICANT


def contingency(names, labels):
    return np.array([[np.sum((names == n) & (labels == k)) for n in OUTLINES] for k in LABELS])


def test_constants():
    assert len(CLASSES) == len(PALETTE) == 9
    assert CLASSES[0] == 'background'
    # Readers of ImageFolder number the sorted folders: the order must be the same.
    assert list(TEXTURE_CLASSES) == sorted(TEXTURES)
    palette = np.array(PALETTE, float)
    distances = np.linalg.norm(palette[:, None] - palette[None], axis=-1)
    assert distances[np.triu_indices(9, 1)].min() > 60


@pytest.mark.parametrize('label', LABELS)
def test_texture(label):
    samples = [render_texture(label, np.random.default_rng(i), 96, 80) for i in range(8)]
    for sample in samples:
        assert sample.shape == (96, 80)
        assert sample.dtype == np.float32
        assert sample.min() >= 0 and sample.max() <= 1
        assert 0.33 < sample.mean() < 0.67
    assert not np.array_equal(samples[0], samples[1])


def stripe_angle(texture):
    """Direction in which a texture changes, in degrees from 0 to 180, by its structure tensor."""
    dy, dx = np.gradient(texture)
    angle = 0.5 * np.arctan2(2 * (dx * dy).sum(), (dx**2 - dy**2).sum())
    return np.rad2deg(angle) % 180


@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize(
    ('name', 'centres'),
    [('stripes_vertical', [0]), ('stripes_horizontal', [90]), ('stripes_diagonal', [45, 135])],
)
def test_stripes_keep_to_their_directions_even_mirrored(name, centres, flip):
    for seed in range(30):
        texture = TEXTURES[name](np.random.default_rng(seed), 128, 128)
        angle = stripe_angle(texture[:, ::-1] if flip else texture)
        off = min(abs((angle - centre + 90) % 180 - 90) for centre in centres)
        assert off < 14, (seed, angle)


def test_standardise():
    rng = np.random.default_rng(0)
    mask = rng.random((40, 40)) < 0.3
    texture = (rng.random((40, 40)) < 0.4).astype(np.float32)
    inside = standardise(texture, mask)[mask]
    assert abs(inside.mean()) < 1e-5
    assert abs(inside.std() - 1) < 1e-5


def test_standardise_does_not_blow_up_a_sliver_of_one_colour():
    texture = np.zeros((10, 10), np.float32)
    texture[0, 0] = 1
    sliver = standardise(texture, np.ones((10, 10), bool))
    assert abs(sliver.mean()) < 1e-6
    assert sliver.max() < 3.5


@pytest.mark.parametrize('name', OUTLINES)
def test_outline(name):
    radius = 30
    areas = []
    for seed in range(10):
        coverage = draw_outline(name, np.random.default_rng(seed), 128, (64, 64), radius)
        assert coverage.shape == (128, 128)
        assert coverage.min() == 0 and coverage.max() == 1
        areas.append((coverage >= 0.5).sum() / (np.pi * radius**2))
    assert min(areas) > 0.35 and max(areas) < 1.3
    assert len(set(areas)) > 1 or name == 'disc'


def test_ring_has_a_hole():
    coverage = draw_outline('ring', np.random.default_rng(0), 64, (32, 32), 20)
    assert coverage[32, 32] == 0
    assert coverage[32, 32 + 16] == 1


def test_scene(scenes):
    counts = set()
    for scene in scenes[:100]:
        assert scene.image.shape == (96, 96, 3) and scene.image.dtype == np.uint8
        assert scene.labels.shape == (96, 96) and scene.labels.dtype == np.uint8
        counts.add(len(scene.objects))
    assert counts == {2, 3, 4}


def test_visible_masks_partition_the_label_map(scenes):
    for scene in scenes:
        owners = np.zeros_like(scene.labels)
        rebuilt = np.zeros_like(scene.labels)
        for thing in scene.objects:
            owners += thing.mask
            rebuilt[thing.mask] = thing.label
        assert owners.max() == 1
        np.testing.assert_array_equal(rebuilt, scene.labels)


def test_every_object_can_be_seen(scenes):
    areas = [thing.mask.mean() for scene in scenes for thing in scene.objects]
    assert min(areas) >= MIN_VISIBLE_AREA
    # The bound is at work: without it smaller ones would come.
    assert min(areas) < 1.2 * MIN_VISIBLE_AREA


def test_objects_overlap(scenes):
    """Some object's outline is cut by a later one: a disc's visible part has a dent."""
    filled = [
        thing.mask.sum() / (np.ptp(rows) + 1) / (np.ptp(columns) + 1)
        for scene in scenes
        for thing in scene.objects
        if thing.outline == 'disc'
        for rows, columns in [np.nonzero(thing.mask)]
    ]
    assert np.mean(np.array(filled) < 0.7) > 0.1


def test_background_is_neither_flat_nor_still(scenes):
    for scene in scenes[:50]:
        background = scene.image[scene.labels == 0].astype(float)
        assert background.std(axis=0).max() > 8
        # Neighbours differ by the sensor's noise.
        steps = np.diff(scene.image.astype(float), axis=1)[scene.labels[:, 1:] == 0]
        assert steps.std() > 3


def test_classes_are_equally_common(objects):
    counts = np.bincount(objects['label'], minlength=len(CLASSES))[1:]
    assert stats.chisquare(counts).pvalue > SIGNIFICANT


@pytest.mark.parametrize('channel', range(3))
def test_colour_does_not_depend_on_class(objects, channel):
    colour, label = objects['colour'][:, channel], objects['label']
    assert not depends_on(colour, label)
    # The test can fail: thirty grey levels between the first and the last class would be noticed.
    assert depends_on(colour + label * 30 / len(LABELS), label)


def test_contrast_does_not_depend_on_class(objects):
    contrast, label = objects['contrast'], objects['label']
    assert not depends_on(contrast, label)
    assert depends_on(contrast + label * 10 / len(LABELS), label)


def test_area_does_not_depend_on_class(objects):
    assert not depends_on(objects['area'], objects['label'])


def test_outline_does_not_depend_on_class(objects):
    outline, label = objects['outline'], objects['label']
    assert stats.chi2_contingency(contingency(outline, label)).pvalue > SIGNIFICANT
    # The test can fail: one object in eight with an outline of its class's own would be noticed.
    tied = np.where(
        np.arange(len(label)) % 8 == 0, np.array(list(OUTLINES))[label % len(OUTLINES)], outline
    )
    assert stats.chi2_contingency(contingency(tied, label)).pvalue < SIGNIFICANT


def test_a_scene_depends_on_seed_split_kind_and_number_alone():
    def image(single=False, split='train', index=4, **changes):
        spec = PatternsSpec(**{'train': 9, 'val': 9, 'size': 64, **changes})
        return make_item(spec, Item(single, split, index)).image

    expected = image()
    np.testing.assert_array_equal(image(), expected)
    np.testing.assert_array_equal(image(train=5, val=1, layouts=('coco',)), expected)
    others = [image(seed=1), image(split='val'), image(index=5), image(single=True)]
    for other in others:
        assert not np.array_equal(other, expected)


def test_given_labels_are_drawn():
    scene = make_scene(np.random.default_rng(0), 64, (5,))
    assert [thing.label for thing in scene.objects] == [5]
    assert set(np.unique(scene.labels)) == {0, 5}
