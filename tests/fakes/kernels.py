"""Every Triton kernel of ours, and the kind of work it is counted as when a step is taken apart."""

__all__ = ["KERNELS"]

KERNELS = {
    "attention": {"_decode", "_merge", "_prefill"},
    "sampling": {"_best", "_rule_out", "_penalise", "_draw", "_score"},
    "experts": {"_route", "_count", "_list", "_sum"},
    "products": {"_product", "_add_up", "_round", "_rescale", "_multiply"},
    "between products": {"_norm", "_activate", "_store"},
}
