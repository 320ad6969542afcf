"""What happened, measured from artifacts and drawn on one page."""
