"""The Merkle search tree (MST) of a repository.

A repo is a map from record paths to record CIDs. The tree gives every such map exactly one shape
and so one root CID, which the commit signs.

* A key's *depth* is the number of leading zero bits of its SHA-256, halved (REPO-20): about one key
  in four is one level higher than the rest. The root holds the keys of the greatest depth; between
  two keys of a node hangs the child with everything that sorts between them, one level lower.
* No level is skipped (a node without keys but with one child fills a gap, REPO-22), nothing empty
  is kept, and the root always has keys, save for the one empty tree (REPO-23, REPO-24).

`node` holds one node and its bytes; `tree` looks up and edits; `proof` answers which nodes prove a
key and which let a relay undo a commit; `diff` compares two trees and checks a whole foreign one.
"""
