"""Analyses of a model: operations, receptive field, token maps, other resolutions."""
