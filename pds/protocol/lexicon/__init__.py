"""The Lexicon schema language: documents, record validation and method descriptions.

* `definitions`: what a checked schema document consists of, as frozen values.
* `schema`, with `nodes` and `fields`: parses and checks documents (`parse_document`).
* `formats`: the string formats.
* `links`: references between definitions.
* `validate`, with `scalars`: turns definitions into closures that check values.
* `methods`: queries, procedures and subscriptions: parameters, input, output.
* `catalog`: all known documents together; what the rest of the program uses.
"""
