"""Bytes of blobs: one interface, several places to keep them."""
