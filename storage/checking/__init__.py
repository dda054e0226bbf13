"""Find everything that can be wrong with a state directory, and repair it; needs no settings and no processes."""

from storage.checking.problem import Problem
from storage.checking.state import Repair, check_state, repair_state

__all__ = ["Problem", "Repair", "check_state", "repair_state"]
