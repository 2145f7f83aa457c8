"""Building blocks of the backbones, plain torch modules."""
