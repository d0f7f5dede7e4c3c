"""What a document, an answer or a proof of OAuth can do wrong."""

from pds.errors import ProtocolError


class OAuthInvalid(ProtocolError):
    """Something of OAuth breaks a rule; the text says which, in words for people."""
