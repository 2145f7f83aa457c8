"""Datasets that mmvim makes itself; real ones are read by the OpenMMLab libraries."""
