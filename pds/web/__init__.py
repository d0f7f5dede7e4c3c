"""HTTP outside `/xrpc/`: front page, health, well-known documents, and pages for people."""
