"""`headrace drill`: poison on simulated time, through the gates that stand in the real path."""
