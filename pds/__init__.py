"""Freehold, a personal data server (PDS) for the AT Protocol network."""

__version__ = "0.1.0"
