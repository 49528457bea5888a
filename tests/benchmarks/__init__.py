"""Speed and memory beside a plain read of the same bytes and beside other programs: `python tests/benchmarks`."""
