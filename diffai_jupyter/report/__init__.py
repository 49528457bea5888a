"""From facts to a report: requests, results, rows, layout."""
