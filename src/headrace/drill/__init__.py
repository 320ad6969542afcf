"""`headrace drill`: poison on simulated or recorded time, through the gates of the real path."""
