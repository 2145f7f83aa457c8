"""Building blocks of Vision Mamba, plain torch modules."""
