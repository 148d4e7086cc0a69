"""Committed recipes that train the embedded models from text found on every machine."""
