"""Providers of points that come with fleece: each is a program, of `provider:NAME` on its own.

They speak the protocol of docs/providers.rst on their standard streams, and use nothing of fleece
but `speak`, so that one can be taken for the beginning of another.
"""
