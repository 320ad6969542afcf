"""The scoring server: raw request in, scores out, with version and watermark on every answer."""
