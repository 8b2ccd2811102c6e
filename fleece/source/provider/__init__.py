"""Points that a program begins and ends: the protocol is in docs/providers.rst."""
