"""The draft model: which experts draft, and which of them substitutes for an expert that cannot."""

from specmoe.drafting.calibration import Calibration
from specmoe.drafting.selection import DraftSelection
from specmoe.drafting.substitution import Picks, SubstitutionRule, make_rule, merge_collisions

__all__ = ["Calibration", "DraftSelection", "Picks", "SubstitutionRule", "make_rule", "merge_collisions"]
