"""`make demo`: the loop once, with drills and claims."""
