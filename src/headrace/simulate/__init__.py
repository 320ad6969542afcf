"""The simulated coupon campaign and its truth."""
