"""Remote tiers: where stores of several machines meet (docs/decisions/0017-remote-tiers.md).

``address`` says what a URI means and ``names`` what objects are called; ``tier`` is what a
tier can do, and ``folder``, ``objects`` and ``oci`` can. ``transfer`` moves one record with its
blobs and statements, verified; ``chain`` asks all tiers of a store; ``bundle`` is one file.
Nothing here is imported before a URI names a remote tier.
"""
