"""What to do next, decided from a snapshot. Pure: no clock, no network, no kopf; `now` is an argument."""
