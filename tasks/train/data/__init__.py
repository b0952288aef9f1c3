"""From rows or teacher scores to packed micro-batches: examples → spool → order → feed → packing."""
