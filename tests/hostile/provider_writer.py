"""Has an image's guest write: `IMAGE DISK OFFSET LENGTH`, as the tests of providers ask for it."""

import secrets
import subprocess
import sys

image, _, offset, length = sys.argv[1:]
words = f"write -P {secrets.randbelow(256)} {offset} {length}"
subprocess.run(
    ["qemu-io", "-f", "qcow2", "-c", words, image], check=True, stdout=subprocess.DEVNULL
)
