"""Whether the rows of a step get the same bits in any batch.

A request may ask for that. Kernels whose results depend on how many rows there are then compute in a way that does not, for
all rows of the steps that it is in. One object for a model and all that computes it, which whoever runs a step sets before.
"""

__all__ = ["Invariance"]


class Invariance:
    def __init__(self) -> None:
        self.asked = False  # of the step that is computed
