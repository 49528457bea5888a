"""Where the pass runs: threads here, processes here, or whatever takes calls elsewhere."""
