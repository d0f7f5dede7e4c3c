"""AT Protocol formats and rules, pure and synchronous: bytes and values in and out."""
