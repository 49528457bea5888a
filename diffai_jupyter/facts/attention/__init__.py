"""Facts about attention layers: their heads, what their circuits compute, and how both changed."""
