"""Datasets that mmvim makes itself, and what pipelines of any data set are made of."""
