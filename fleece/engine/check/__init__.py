"""What a store holds, read and judged: verify, scrub, status, diff, map."""
