"""Rules of OAuth as the AT Protocol profiles it, for signing in elsewhere and signing in here.

Pure: documents, proofs, permissions. The calls are in services.
"""
