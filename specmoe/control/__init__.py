"""Chooses each cycle's draft length from measured costs and acceptance."""
