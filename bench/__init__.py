"""Speed: what one write costs, step by step, and what the server does over HTTP."""
