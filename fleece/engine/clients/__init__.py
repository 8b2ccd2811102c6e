"""Clients of what is shown to others: let in, bounded in number and time, cut off in the end."""
