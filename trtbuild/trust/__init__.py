"""Trust: who signed an engine, what they said of it, and whether a policy lets it be loaded.

Rules without input or output: bytes and values come in, a decision or a refusal comes out.
Files are read and written by :mod:`trtbuild.runtime` and :mod:`trtbuild.pipeline`.
"""
