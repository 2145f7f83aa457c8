"""Names, label numbers and colours of the classes of the patterns dataset.

The textures are in alphabetical order, so that a label map's number, a COCO category id and
(less one) the index that an ImageFolder reader gives to the sorted folders all agree.
"""

BACKGROUND = 0

CLASSES: tuple[str, ...] = (
    'background',
    'blobs',
    'checker',
    'dots',
    'grid',
    'noise',
    'stripes_diagonal',
    'stripes_horizontal',
    'stripes_vertical',
)

TEXTURE_CLASSES: tuple[str, ...] = CLASSES[1:]

# RGB. Okabe and Ito's colours for colour-blind readers, its black replaced by violet; the
# background stays a dark grey so that objects stand out of an overlay.
PALETTE: tuple[tuple[int, int, int], ...] = (
    (58, 62, 70),
    (0, 158, 115),
    (230, 159, 0),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
    (204, 121, 167),
    (0, 114, 178),
    (148, 103, 230),
)
