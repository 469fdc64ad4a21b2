"""Whether the rows of a step get the same bits in any batch.

A request may ask for that. Kernels whose results depend on how many rows there are then compute in a way that does not, for
all rows of the steps that it is in. One object for a model and all that computes it: a step sets it before it is launched.
"""

from quire_engine.core.step import StepPlan

__all__ = ["Invariance"]


class Invariance:
    def __init__(self) -> None:
        self.asked = False  # of the step that is launched
        self._slots: set[int] = set()  # whose sequences ask

    def follow(self, plan: StepPlan) -> None:
        """This step is next."""
        for placed in plan.placements:
            (self._slots.add if placed.params.batch_invariant else self._slots.discard)(placed.slot)
        self.asked = bool(self._slots) and not self._slots.isdisjoint(plan.slots)
