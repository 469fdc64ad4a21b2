"""From a resource to the objects it becomes. Pure: the same spec gives the same bytes, sorted, without a clock."""
