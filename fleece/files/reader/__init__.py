"""The process that parses what a guest has written. It imports the file-system library, no store.

It runs as `python -m fleece.files.reader` with a socket as its standard input, asks for bytes of
the disk over it, and answers what `fleece.files.session` asks. Whatever goes wrong in it, by
accident or because a guest meant it, ends as one error on the other side.
"""
