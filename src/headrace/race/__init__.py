"""The race between a champion and its challengers: who answers, what it is worth, who wins.

Pure: values in, values out. `arms` declares a race and draws the arm of a request, by `thompson`'s
odds where it says so; `interleave` mixes two rankings in one list, `estimate` values an arm from
rows that others served, `sequential` bounds a mean at every look, `verdict` decides.
"""
