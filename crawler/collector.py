"""Python's collector of cycles, told to run seldom, for processes that live long and make few cycles."""

from __future__ import annotations

import gc

THRESHOLDS = (20_000, 20, 50)
"""Python's own are 700, 10, 10: a recorder that takes in a hundred reports would look through all it has many times,
and find nothing."""


def run_seldom() -> None:
    """Look through what is there once, and then never again: libraries and settings stay. What is made from now on is
    looked through by THRESHOLDS. Call it when everything is imported."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
