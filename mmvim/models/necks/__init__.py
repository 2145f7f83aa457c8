"""Necks: from the maps of one stride that a plain backbone gives to a pyramid."""
