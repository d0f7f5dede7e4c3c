"""Who is who: DIDs to documents, handles to DIDs, and the PLC directory.

`resolver.IdentityResolver` is what the rest of the program uses; it puts a bounded cache before
`did_plc`, `did_web` and `handle`, which make the requests.
"""
