"""Which layers read their input alike: matrices compared with matrices, within a checkpoint and across two."""
