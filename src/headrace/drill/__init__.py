"""`headrace drill`: poison on simulated or recorded time, through the gates that stand in the real path."""
