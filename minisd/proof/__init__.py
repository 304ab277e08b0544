"""Proof that a picture can be drawn again: the record in it, verify, bisect, pins for pytest."""

from minisd.proof.verdict import Verdict, verify

__all__ = ["Verdict", "verify"]
