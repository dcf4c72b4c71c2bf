"""`data.cache: ram | disk`: decode each photo once and keep a small copy."""
