"""Building blocks of models: weights and the kernels they call. A layer knows no file and no batch policy."""
