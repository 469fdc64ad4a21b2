"""Which sizes a step is recorded in (ops/triton/graphs.py): its rows, and the longest context attention is launched for.

A recording repeats one launch of each kernel to the last number, so that a smaller step is filled up to the next size with
rows that are nobody's. They cost little: a product reads its weights anyway, and attention's programs beyond a context
return at once. Their number is bounded, for each of them is memory; so are the programs of one launch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["SHORTEST", "Bucket", "bucket_of", "buckets"]

ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
SHORTEST = 512  # tokens: what attention of a single token has in one part (attend.py)
GROWTH = 4  # from one context to the next
MOST_PARTS = 4096  # rows times parts of a context


@dataclass(frozen=True, slots=True)
class Bucket:
    rows: int
    context: int  # tokens; no row may look at more

    @property
    def parts(self) -> int:
        """That attention's launch has of contexts, of all rows."""
        return self.rows * (self.context // SHORTEST)


def bucket_of(rows: int, longest: int) -> Bucket | None:
    """The smallest for so many rows of one token each; None: such a step is not recorded."""
    size = next((size for size in ROWS if size >= rows), None)
    if size is None or not rows:
        return None
    context = SHORTEST
    while context < longest:
        context *= GROWTH
    bucket = Bucket(size, context)
    return bucket if bucket.parts <= MOST_PARTS else None


def buckets(max_rows: int, max_context: int) -> Iterator[Bucket]:
    """All that steps of at most so many rows and such contexts can come to."""
    longest = SHORTEST
    while True:
        for rows, below in zip(ROWS, (0, *ROWS), strict=False):
            bucket = Bucket(rows, longest)
            if below < max_rows and bucket.parts <= MOST_PARTS:
                yield bucket
        if longest >= max_context:
            return
        longest *= GROWTH
