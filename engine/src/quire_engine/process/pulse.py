"""Is the engine process alive? Pure: told what was heard and what time it is, it says whether that is too little.

A ping goes out every PERIOD_S and is answered between steps. Silence is a stall once it is longer than any step
should be: LEAST_S, or PATIENCE times as long as the engine announced for the step it is in.
"""

__all__ = ["PERIOD_S", "Pulse"]

PERIOD_S = 1.0
LEAST_S = 5.0
PATIENCE = 3.0


class Pulse:
    def __init__(self, now: float) -> None:
        self._heard = self._looked = now
        self._expected = 0.0  # seconds of the step under way, as announced

    def heard(self, now: float) -> None:
        self._heard, self._expected = now, 0.0

    def announced(self, seconds: float, now: float) -> None:
        """A step begins that should take so long."""
        self._heard, self._expected = now, seconds

    def age(self, now: float) -> float:
        """Seconds of silence."""
        return now - self._heard

    def has_stopped(self, now: float) -> bool:
        """Call it every PERIOD_S. If we ourselves were held up meanwhile, the engine gets that time as well."""
        self._heard += max(0.0, now - self._looked - 2 * PERIOD_S)
        self._looked = now
        return self.age(now) > max(LEAST_S, PATIENCE * self._expected)
