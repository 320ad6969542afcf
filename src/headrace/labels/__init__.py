"""Attribution, provisional samples and corrections (pure)."""
